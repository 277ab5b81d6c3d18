"""Check what a fine-tuning run would read and train: ``molfun check``."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from molfun.checks.data import examine, rows
from molfun.checks.data.model import samples
from molfun.checks.data.subject import PARTS, Subject
from molfun.checks.findings import Finding, Status, as_json, summary, worst
from molfun.checks.logs import as_finding, kept_warnings
from molfun.cli.console import say
from molfun.cli.data import check_judging, open_file, split
from molfun.cli.fine_tune import architecture, model_of, strategy_of
from molfun.cli.settings import FineTuneSettings
from molfun.cli.sources import settings_of
from molfun.cli.subjects import subject_of
from molfun.data.base import SampleDataset
from molfun.data.faults import Faults, collected
from molfun.data.kinds.sequences import is_fasta
from molfun.models.build import resolve_device
from molfun.models.skeleton import Skeleton
from molfun.nn.process import settled

logger = logging.getLogger(__name__)

EXIT_CODES: Mapping[Status, int] = {"OK": 0, "FAILED": 1, "WARNING": 3}
"""Worst status to exit code: a run would refuse what failed. 2 is a wrong flag, as everywhere."""


def check(given: Mapping[str, Any]) -> None:
    """Print findings as they are made, or all of them as JSON.

    The exit code is that of the worst of them (`EXIT_CODES`); 0 means that all of it passed.
    """
    given = dict(given)
    wants_json = bool(given.pop("as_json", False))
    settings, _ = settings_of(FineTuneSettings, given)
    findings = []
    for finding in findings_of(settings):
        findings.append(finding)
        if not wants_json:
            say(str(finding))
    say(as_json(findings) if wants_json else summary(findings))
    if code := EXIT_CODES[worst(findings)]:
        raise SystemExit(code)


def findings_of(settings: FineTuneSettings) -> Iterator[Finding]:
    """Yield the faults of all rows and files, then what the data and the model look like."""
    subject: Subject | None = None
    with collected() as faults, kept_warnings() as said, contextlib.redirect_stdout(io.StringIO()):
        parts = read(settings, faults)
        if parts.get("train") is not None:
            subject = _subject(settings, parts, faults)
    yield from rows.findings(faults)
    for text in said:
        yield as_finding(text, "data")
    if not faults.found:
        yield Finding(status="OK", topic="rows", text="every row and file can be used")
    if subject is not None:
        with settled():
            yield from examine(subject)


def read(settings: FineTuneSettings, faults: Faults) -> dict[str, SampleDataset]:
    """Open every file of a run, and return the parts that have samples."""
    if settings.demo:
        demo = settings.kind.demo(settings.demo_samples, settings.demo_seq_len)
        return {"train": demo}
    files: dict[str, SampleDataset] = {}
    for name in ("data", "val", "test"):
        path = getattr(settings, name)
        if path:
            with faults.caught(str(path)):
                files[name] = _opened(settings, path, files.get("data"))
    found: list[SampleDataset | None] = [None, files.get("val"), files.get("test")]
    if len(files.get("data", ())):
        with faults.caught(f"--split {settings.split}"):
            train, val, test = split(files["data"], settings)
            found = [train, found[1] or val, found[2] or test]
            check_judging(settings, files)
    named = zip(PARTS, found, strict=True)
    return {name: part for name, part in named if part is not None and len(part)}


def _opened(settings: FineTuneSettings, path: Any, like: SampleDataset | None) -> SampleDataset:
    """Open a file; one of sequences without labels, for which training would need a table."""
    if settings.kind.name == "sequences" and isinstance(path, str) and is_fasta(path):
        return settings.kind.open_unlabelled(path, settings)
    return open_file(settings, path, like=like)


def _subject(
    settings: FineTuneSettings, parts: dict[str, SampleDataset], faults: Faults
) -> Subject:
    subject = subject_of(settings, parts)
    with faults.caught("device"):
        subject.device = resolve_device(settings.device)
    with faults.caught("model"):
        subject.model = _model(settings, [parts.get(name) for name in PARTS])
        blocks = len(subject.model.backbone.blocks())
        subject.strategy = strategy_of(settings, len(parts["train"]), blocks)
        if settings.strategy == "auto":
            subject.why = "chosen by the number of samples"
    samples(subject, faults)
    return subject


def _model(settings: FineTuneSettings, parts: list[SampleDataset | None]) -> Any:
    """Build the model as a run does if it has weights to read, else without numbers."""
    if settings.weights is None and settings.init_from is None:
        try:
            return Skeleton(settings.backbone, **architecture(settings, *parts))
        except Exception as error:  # an error of the settings comes again below
            # not every package can be built on the meta device (metatensor cannot)
            logger.debug("No skeleton of %s: %s", settings.backbone, error)
    return model_of(settings, *parts)
