"""Write the provenance, report and model card of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from molfun.cli.console import say
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import read_yaml
from molfun.data.base import SampleDataset
from molfun.data.summary import summarise, summarise_inputs
from molfun.models.structure import MolfunStructureModel
from molfun.runs import provenance
from molfun.runs.card import write_card
from molfun.runs.checkpoint import CARD
from molfun.runs.folder import RunFolder
from molfun.strategies.base import FinetuneStrategy
from molfun.text import first_line

logger = logging.getLogger(__name__)


def record_start(
    folder: RunFolder,
    settings: FineTuneSettings,
    strategy: FinetuneStrategy,
    model: MolfunStructureModel,
    parts: Sequence[SampleDataset | None],
    *,
    resumed: bool,
) -> None:
    """Write versions, files, parameters and a summary of the data when training starts."""
    with _failing("provenance"):
        provenance.begin(
            folder.path,
            inputs=settings.inputs,
            resumed=resumed,
            model={
                "name": model.backbone.display_name,
                **_parameters(model.backbone, *(part.head for part in model.heads)),
                "rates": strategy.describe_rates(model),
            },
            data=summarise(dict(zip(("train", "val", "test"), parts, strict=True))),
        )


def record_pretraining(
    folder: RunFolder,
    settings: PretrainSettings,
    model: MolfunStructureModel,
    parts: Sequence[SampleDataset | None],
    *,
    resumed: bool,
) -> None:
    """Write versions, files, parameters and a summary of the data when pre-training starts."""
    named = dict(zip(("train", "val"), parts, strict=True))
    with _failing("provenance"):
        # the weights of the objective are not among them: they are left behind
        provenance.begin(
            folder.path,
            inputs=settings.inputs,
            resumed=resumed,
            model={"name": model.backbone.display_name, **_parameters(model.backbone)},
            data=summarise_inputs(named),
        )


def _parameters(*modules: Any) -> dict[str, int]:
    """Count parameters of backbone and heads; a head may consist of modules of the backbone."""
    own: dict[int, Any] = {id(p): p for module in modules for p in module.parameters()}
    trainable = sum(p.numel() for p in own.values() if p.requires_grad)
    return {"parameters": sum(p.numel() for p in own.values()), "trainable": trainable}


def record_folds(
    folder: RunFolder, settings: FineTuneSettings, dataset: SampleDataset, *, resumed: bool
) -> None:
    """Write versions, files and a summary of the data when a cross-validation starts."""
    with _failing("provenance"):
        provenance.begin(
            folder.path, inputs=settings.inputs, resumed=resumed, data=summarise({"all": dataset})
        )


def show(folder: RunFolder, *, report: bool) -> None:
    """Complete provenance and model card, and write the report unless it is switched off.

    A run whose card or report fails is a good run: the failure is a warning.
    """
    with _failing("provenance"):
        provenance.finish(folder.path)
    # pre-training leaves weights alone, and the models of folds have cards of their own
    if folder.checkpoint.is_dir():
        with _failing("model card"):
            write_card(folder.path, folder.checkpoint / CARD, read_yaml(folder.config))
    if report:
        with _failing("report"):
            say(f"Report: {_written(folder)}")


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn any error into a warning."""
    try:
        yield
    except Exception as error:  # hours of training are not lost to a page about them
        logger.warning("The %s could not be written: %s.", what, first_line(error))
        logger.debug("The %s failed", what, exc_info=True)


def _written(folder: RunFolder) -> Path:
    # on first use: matplotlib takes half a second to import
    from molfun.report import write_report

    return write_report(folder.path)
