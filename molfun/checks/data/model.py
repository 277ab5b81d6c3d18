"""Check that the model takes the samples, and its heads the labels."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding
from molfun.data.faults import Faults, kind_of
from molfun.errors import DataError
from molfun.models.loaders import check_labels, check_sizes, doubtful_in
from molfun.sample import is_missing
from molfun.training.task_head import TaskHead


def samples(subject: Subject, faults: Faults) -> None:
    """Note the samples that the backbone cannot use."""
    if subject.model is None:
        return
    for part, data in subject.parts.items():
        backbone = subject.model.backbone
        _, problems = backbone.problems(doubtful_in([data], backbone))
        for text in problems:
            # "seq_3 (t.csv, line 4): 'J' at position 2 is no amino acid: write X"
            fault = text.partition(": ")[2] or text
            faults.note(f"samples, {part}", [text], kind_of(fault).partition(": ")[0])


def check(subject: Subject) -> Iterator[Finding]:
    """Fit every task to the training labels, as a run does, and read the labels of all parts.

    Whether there are weights to start from is said first.
    """
    if subject.model is not None and not subject.has_weights:
        yield from _random(subject)
    for head in subject.heads:
        topic = f"head{f' {head.name}' if head.name else ''}"
        faults = _of_labels(subject, head)
        for (_, kind), texts in faults.found.items():
            yield Finding(status="FAILED", topic=topic, text=kind, examples=list(texts)[:10],
                          total=len(texts))  # fmt: skip
        if not faults.found:
            yield from _fitting(subject, head, topic)


def _random(subject: Subject) -> Iterator[Finding]:
    backbone = subject.model.backbone
    if not backbone.starts_random:
        yield Finding(
            status="WARNING",
            topic="weights",
            text=f"none are given: {backbone.display_name} starts from random ones, which is good "
            f"for tests and not for science",
            remedy="--weights FILE; weights/README.md lists the files and where they come from.",
        )


def _of_labels(subject: Subject, head: TaskHead) -> Faults:
    faults = Faults()
    train = subject.parts["train"]
    loaders = {name: Loaded(data) for name, data in subject.parts.items()}
    with faults.caught("labels"):
        check_sizes(head, *subject.parts.values())
    with faults.caught("labels"):
        own = head.labels(train.targets)
        if all(map(is_missing, own)):
            raise DataError("no training sample has a label")
        if head.task.numbers_unfitted:
            check_labels(head, loaders["train"])
        head.task.fit_targets(own)
        for name in loaders:
            check_labels(head, loaders[name])
    return faults


class Loaded:
    """Stand-in for a loader, which checks of labels ask for its data set."""

    def __init__(self, dataset: object) -> None:
        self.dataset = dataset


def _fitting(subject: Subject, head: TaskHead, topic: str) -> Iterator[Finding]:
    n = sum(p.numel() for p in head.head.parameters())
    text = f"{head.head_name} with {n:,} weights, for the task {head.task_name} per {_level(head)}"
    gaps = head.task.gaps(head.labels(subject.parts["train"].targets))
    yield Finding(
        status="WARNING" if gaps else "OK", topic=topic, text=f"{text}; {gaps}" if gaps else text
    )


def _level(head: TaskHead) -> str:
    return "sample" if head.task.level == "sequence" else head.task.level
