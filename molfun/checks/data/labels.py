"""Distribution of the labels in each part, and labels from which nothing can be learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding, Status
from molfun.data.kinds.base import CLASSES
from molfun.data.summary import letters_of
from molfun.data.tables import OUTLIER_RANGES
from molfun.sample import is_missing
from molfun.text import counted, few

SHIFT = 1.0
"""Difference of two parts' means, in deviations of the training labels, that is worth a warning."""
RARE = 0.02
"""Share of the training samples below which a class is seldom predicted."""


def check(subject: Subject) -> Iterator[Finding]:
    """Describe the labels of every head and part."""
    for head, labels in subject.labels.items():
        for part in subject.parts:
            targets = subject.targets(part, head)
            topic = f"labels{f' {head}' if head else ''}, {part}"
            if labels.task in CLASSES:
                per_residue = labels.level == "residue"
                names = _names([*map(letters_of, targets)] if per_residue else targets)
                yield from _classes(topic, part, names)
            elif labels.task == "regression":
                for name, values in _columns(targets, labels.level):
                    yield from _numbers(topic + name, part, values)
        if labels.task == "regression":
            yield from _shift(subject, head)


def values_of(targets: Sequence[Any]) -> np.ndarray:
    """Return all numbers of the labels; NaN for each sample without one."""
    if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
        return targets
    rows = [np.nan if is_missing(target) else target for target in targets]
    flat = [np.asarray(row, np.float64).ravel() for row in rows]
    return np.concatenate(flat) if flat else np.zeros(0)


def _columns(targets: Sequence[Any], level: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the numbers of each of several targets of a sample, and those of all where one is."""
    rows = _rows(targets) if level == "sequence" else []
    sizes = {row.size for row in rows}
    if len(sizes) != 1 or sizes == {1}:
        yield "", values_of(targets)
        return
    gaps = np.full(len(targets) - len(rows), np.nan)
    for i, column in enumerate(np.stack(rows, axis=1), start=1):
        yield f", target {i}", np.concatenate([column, gaps])


def _rows(targets: Sequence[Any]) -> list[np.ndarray]:
    """Return the numbers of each labelled sample; none if it is known that each has one."""
    if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
        return []
    return [np.asarray(target, np.float64).ravel() for target in targets if not is_missing(target)]


def _names(targets: Sequence[Any]) -> list[str]:
    """Return all class names of the labels, those of residues and of several classes among them."""
    names: list[str] = []
    for target in targets:
        if is_missing(target):
            continue
        if isinstance(target, str):
            names += [one.strip() for one in target.split(";")]
        elif np.ndim(target) == 0:
            names.append(str(target))
        else:
            names += [str(one) for one in target if not is_missing(one)]
    return names


def _numbers(topic: str, part: str, values: np.ndarray) -> Iterator[Finding]:
    known = values[np.isfinite(values)]
    if not len(known):
        yield Finding(status="FAILED", topic=topic, text="no sample has a label")
        return
    facts = _statistics(known)
    if len(known) > 1 and np.ptp(known) == 0:
        yield _constant(topic, part, known)
        return
    text = "{n:,} numbers, mean {mean:.3g}, deviation {sd:.3g}, {min:.3g} to {max:.3g}, middle " \
        "half {low:.3g} to {high:.3g}".format(**facts)  # fmt: skip
    missing = len(values) - len(known)
    text += f"; {counted(missing, 'sample')} without" if missing else ""
    yield Finding(status="OK", topic=topic, text=text, facts={**facts, "missing": missing})
    yield from _far(topic, known, facts)


def _statistics(known: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(known, [25, 50, 75])
    return {
        "n": len(known), "mean": float(known.mean()), "sd": float(known.std()),
        "min": float(known.min()), "low": float(low), "median": float(middle),
        "high": float(high), "max": float(known.max()),
    }  # fmt: skip


def _constant(topic: str, part: str, known: np.ndarray) -> Finding:
    fails = part == "train"
    why = "there is nothing to learn" if fails else "correlations are undefined"
    return Finding(
        status="FAILED" if fails else "WARNING",
        topic=topic,
        text=f"all {len(known)} are {known[0]:g}: {why}",
        remedy="Check the column of the labels (--target-column)." if fails else "",
    )


def _far(topic: str, known: np.ndarray, facts: dict[str, float]) -> Iterator[Finding]:
    distances = np.abs(known - facts["median"])
    far = known[distances > OUTLIER_RANGES * (facts["high"] - facts["low"] or _usual(distances))]
    if len(known) > 3 and len(far):
        yield Finding(
            status="WARNING",
            topic=topic,
            text=f"{counted(len(far), 'value')} far from the rest: "
            f"{few([f'{value:g}' for value in far])}",
            remedy="Check their unit.",
        )


def _usual(distances: np.ndarray) -> float:
    """Return the lower median of the distances of the labels that differ from most of them."""
    others = np.sort(distances[distances > 0])
    # a single one has nothing to be compared with, but is far by any unit at 50
    return float(others[(len(others) - 1) // 2]) if len(others) > 1 else 1.0


def _classes(topic: str, part: str, names: Sequence[str]) -> Iterator[Finding]:
    counts = Counter(names)
    shown = few([f"{name!r} {n:,}" for name, n in counts.most_common()], limit=8)
    if len(counts) < 2:
        yield _one_class(topic, part, counts, shown)
        return
    rare = [repr(name) for name, n in counts.items() if n < RARE * len(names)]
    odd = bool(rare) and part == "train"
    yield Finding(
        status="WARNING" if odd else "OK",
        topic=topic,
        text=f"{len(counts)} classes: {shown}" + (f"; below {RARE:.0%}: {few(rare)}" * odd),
        remedy="--class-weight balanced weighs them up." * odd,
        facts=dict(counts),
    )


def _one_class(topic: str, part: str, counts: Counter[str], shown: str) -> Finding:
    fails = part == "train" or not counts
    why = "there is nothing to learn" if fails else "AUROC and correlations are undefined"
    text = f"one class alone ({shown}): {why}" if counts else "no sample has a label"
    status: Status = "FAILED" if fails else "WARNING"
    return Finding(status=status, topic=topic, text=text, facts=dict(counts))


def _shift(subject: Subject, head: str) -> Iterator[Finding]:
    """Warn of a held-out part whose labels are elsewhere than those of the training set."""
    values = {part: values_of(subject.targets(part, head)) for part in subject.parts}
    known = {part: v[np.isfinite(v)] for part, v in values.items()}
    train = known.get("train", np.zeros(0))
    scale = float(train.std()) if len(train) > 1 else 0.0
    for part in ("val", "test"):
        other = known.get(part, np.zeros(0))
        if scale == 0 or len(other) < 2:
            continue
        # of the standard error as well, since a small part is off by chance
        moved = abs(other.mean() - train.mean()) / scale
        if moved > SHIFT and moved > 3 / np.sqrt(len(other)):
            yield Finding(
                status="WARNING",
                topic=f"labels{f' {head}' if head else ''}, {part}",
                text=f"their mean is {moved:.1f} deviations away from that of the training set",
                remedy="A model is judged on labels that it has not seen the like of.",
                facts={"deviations": float(moved)},
            )
