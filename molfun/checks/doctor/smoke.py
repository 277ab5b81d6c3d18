"""Train tiny models for a few steps, save them, and load them again."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.registry import BACKBONES
from molfun.text import first_line


def _sequences() -> Any:
    from molfun.data.sequences import SequenceDataset

    texts = ["MKTAYIAKQR", "ACDEFGHIKL", "MNPQRSTVWY", "GGSGGSGGS", "LLKKLLKKLLKK", "WYWYWYWY"]
    return SequenceDataset.from_list([(text, text.count("K") + 0.5) for text in texts])


def _structures() -> Any:
    from molfun.data.affinity import AffinityDataset

    return AffinityDataset.synthetic(4, length=16)


def _series() -> Any:
    from molfun.data.series.demo import double_well

    return double_well(n_series=8, n_frames=(8, 12), seed=0)


MODELS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "esm2": ("esm2_tiny", {"head": "regression"}, _sequences),
    "openfold": ("openfold", {"config": "tiny", "head": "affinity"}, _structures),
    "timeseries": (
        "timeseries",
        {"head": "binary", "backbone_config": {"d_input": 4}},
        _series,
    ),
}
"""Backbone to the name, settings and data of a tiny model."""


def check(context: Context) -> Iterator[Finding]:
    """Fit every tiny model whose packages are installed; the last one needs none."""
    if not context.smoke:
        yield Finding(status="WARNING", topic="smoke fit", text="left out (--no-smoke)")
        return
    for name, (backbone, settings, data) in MODELS.items():
        try:
            BACKBONES[name]
        except Exception:  # said by the check of backbones
            continue
        yield _fitted(name, backbone, {**settings, "device": context.device}, data)


def _fitted(name: str, backbone: str, settings: dict[str, Any], data: Callable[[], Any]) -> Finding:
    topic, start = f"smoke fit {name}", time.perf_counter()
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="molfun-doctor-") as folder:
            fault, about = _fit(backbone, settings, data(), Path(folder))
    except Exception as error:  # the fit is the test: any error is its result
        fault, about = f"{type(error).__name__}: {first_line(error)}", ""
    taken = time.perf_counter() - start
    text = fault or f"{about}, saved and loaded with the same predictions, {taken:.1f} s"
    status: Any = "FAILED" if fault else "OK"
    return Finding(status=status, topic=topic, text=text, facts={"seconds": taken})


def _fit(backbone: str, settings: dict[str, Any], data: Any, folder: Path) -> tuple[str, str]:
    """Return what is wrong, empty if nothing is, and what was done."""
    import numpy as np

    from molfun.models.structure import MolfunStructureModel
    from molfun.strategies.full import FullFinetune

    model = MolfunStructureModel(backbone, **settings)
    history = model.fit(data, data, strategy=FullFinetune(lr=1e-3), epochs=2, output_dir=folder)
    losses = [row["train_loss"] for row in history]
    if not all(map(math.isfinite, losses)):
        return f"losses are not finite: {losses}", ""
    again = MolfunStructureModel.from_checkpoint(folder / "checkpoint", device=settings["device"])
    trained, loaded = (np.asarray(m.predict(data)["prediction"]) for m in (model, again))
    if not np.array_equal(trained, loaded):
        return "the saved model predicts something else than the trained one", ""
    shown = " -> ".join(f"{loss:.3g}" for loss in losses)
    return "", f"loss {shown} on {model.device}, {model.backbone.kernels} kernels"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings, which would be of the tiny model and not of the machine."""
    from molfun.nn.process import kept_levels

    with kept_levels(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("molfun").setLevel(logging.ERROR)
        yield
