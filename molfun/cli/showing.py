"""Write the provenance, report and model card of a run."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from molfun._io import write_text
from molfun.cli.console import say
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import read_yaml
from molfun.data.base import SampleDataset
from molfun.data.cells import escape
from molfun.data.summary import summarise, summarise_inputs
from molfun.errors import ConfigError
from molfun.models.attribution import residue_attributions
from molfun.models.structure import MolfunStructureModel
from molfun.runs import provenance
from molfun.runs.card import write_card
from molfun.runs.checkpoint import CARD
from molfun.runs.folder import ATTRIBUTIONS, RunFolder
from molfun.sample import Sample
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
    with failing("provenance"):
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
    with failing("provenance"):
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
    with failing("provenance"):
        provenance.begin(
            folder.path, inputs=settings.inputs, resumed=resumed, data=summarise({"all": dataset})
        )


def show(
    folder: RunFolder,
    *,
    report: bool,
    model: MolfunStructureModel | None = None,
    parts: Sequence[SampleDataset | None] = (),
) -> None:
    """Complete provenance and model card, and write the report unless it is switched off.

    A run whose card or report fails is a good run: the failure is a warning.

    Parameters
    ----------
    folder
        Folder of the run.
    report
        Whether to write the report.
    model, parts
        The trained model and its data sets, for what is computed for the report alone.
    """
    with failing("provenance"):
        provenance.finish(folder.path)
    # pre-training leaves weights alone, and the models of folds have cards of their own
    if folder.checkpoint.is_dir():
        with failing("model card"):
            write_card(folder.path, folder.checkpoint / CARD, read_yaml(folder.config))
    if report:
        if model is not None:
            with failing("attributions"):
                write_attributions(folder, model, parts)
        with failing("report"):
            say(f"Report: {_written(folder)}")


def write_attributions(
    folder: RunFolder, model: MolfunStructureModel, parts: Sequence[SampleDataset | None]
) -> None:
    """Write what each residue contributes, of the structures that the report shows.

    One row per residue that the model read: ``id,chain,position,residue,attribution``, the position
    counted from 1 in the sequence before any crop. Nothing is written where the head does not pool.
    """
    from molfun.report.finished import FinishedRun
    from molfun.report.sections.structures import shown

    chosen = shown(FinishedRun(folder.path))
    if chosen is None:
        return
    _, found, places = chosen
    samples = _samples(parts, {found.ids[place] for place in places})
    try:
        values = residue_attributions(model, samples) if samples else []
    except ConfigError:  # this head has no pooled number
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "chain", "position", "residue", "attribution"])
    for sample, own in zip(samples, values, strict=True):
        protein: Any = sample.protein
        for i, value in enumerate(own):
            chain = escape(protein.chain_ids[protein.chain_index[i]])
            place = int(protein.positions[i]) + 1
            row = [escape(sample.id), chain, place, protein.sequence[i], f"{value:.6g}"]
            writer.writerow(row)
    write_text(folder.path / ATTRIBUTIONS, text.getvalue())


def _samples(parts: Sequence[SampleDataset | None], wanted: set[str]) -> list[Sample]:
    """Return the structures of some ids."""
    present = [part for part in parts if part is not None]
    found = [part[i] for part in present for i, name in enumerate(part.ids) if name in wanted]
    return [sample for sample in found if sample.protein is not None]


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn any error into a warning, for a ``with`` block or as a decorator."""
    try:
        yield
    except Exception as error:  # hours of training are not lost to a page about them
        logger.warning("The %s could not be written: %s.", what, first_line(error))
        logger.debug("The %s failed", what, exc_info=True)


def _written(folder: RunFolder) -> Path:
    # on first use: matplotlib takes half a second to import
    from molfun.report import write_report

    return write_report(folder.path)
