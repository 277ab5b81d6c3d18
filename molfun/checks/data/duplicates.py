"""Equal inputs: with different labels, and in two parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

from molfun.checks.data.subject import Subject
from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.clusters import comparable
from molfun.models.loaders import label_texts
from molfun.sample import is_missing
from molfun.text import few

Place = tuple[str, int]
"""Part of a sample, and its place there."""


def check(subject: Subject) -> Iterator[Finding]:
    """Look for equal inputs in the training set, and for those that it shares with other parts."""
    if not has_sequences(subject):
        return
    places = _places(subject)
    for head in subject.labels:
        yield from _conflicts(subject, head, places)
    for part in ("val", "test"):
        yield from _shared(subject, part, places)


def has_sequences(subject: Subject) -> bool:
    """Return True if samples are told apart by sequences, and not by texts in their place."""
    return subject.kind.name in ("sequences", "structures")


def key_of(chains: tuple[str, ...]) -> Hashable:
    """Return what equal samples share: their chains, in any order and either case."""
    return tuple(sorted(map(comparable, chains)))


def _places(subject: Subject) -> dict[str, dict[Hashable, list[int]]]:
    found: dict[str, dict[Hashable, list[int]]] = {}
    for part, data in subject.parts.items():
        found[part] = defaultdict(list)
        for place, chains in enumerate(data.sequences()):
            found[part][key_of(chains)].append(place)
    return found


def _conflicts(
    subject: Subject, head: str, places: dict[str, dict[Hashable, list[int]]]
) -> Iterator[Finding]:
    topic = f"duplicates{f' {head}' if head else ''}"
    bad = list(_contradicting(subject, head, places))
    if not bad:
        equal = sum(len(own) - 1 for own in places["train"].values())
        text = f"{equal:,} training samples repeat the input of another one" if equal else "none"
        yield Finding(status="OK", topic=topic, text=text, facts={"repeated": equal})
        return
    lines = [f"{few(_ids(subject, own))}: {few(labels)}" for own, labels in bad]
    parts = {part for own, _ in bad for part, _ in own}
    kind = "training " if parts == {"train"} else ""
    yield Finding(
        status="WARNING",
        topic=topic,
        text=f"{sum(len(own) for own, _ in bad):,} {kind}samples have the input of another one "
        f"and a different label: no model can be right on both",
        remedy="Average repeated measurements, or check the table.",
        examples=lines[:EXAMPLES],
        total=len(lines),
    )


def _ids(subject: Subject, samples: list[Place]) -> list[str]:
    return [subject.parts[part].ids[i] for part, i in samples]


def _contradicting(
    subject: Subject, head: str, places: dict[str, dict[Hashable, list[int]]]
) -> Iterator[tuple[list[Place], list[str]]]:
    """Yield the samples of all parts with one input whose labels differ, with these labels."""
    targets = {part: subject.targets(part, head) for part in places}
    for samples in _equal(places):
        found = [targets[part][i] for part, i in samples]
        known = [target for target in found if not is_missing(target)]
        labels = dict(zip(label_texts(known), map(_shown, known), strict=True))
        if len(labels) > 1:
            yield samples, sorted(labels.values())


def _equal(places: dict[str, dict[Hashable, list[int]]]) -> list[list[Place]]:
    """Return the samples of all parts that share their input with another one."""
    groups: dict[Hashable, list[Place]] = defaultdict(list)
    for part, by_input in places.items():
        for key, own in by_input.items():
            groups[key] += [(part, i) for i in own]
    return [samples for samples in groups.values() if len(samples) > 1]


def _shared(
    subject: Subject, part: str, places: dict[str, dict[Hashable, list[int]]]
) -> Iterator[Finding]:
    if part not in places:
        return
    both = places["train"].keys() & places[part].keys()
    if both:
        ids, train = subject.parts[part].ids, subject.parts["train"].ids
        lines = [
            f"{few([ids[i] for i in places[part][key]])} = "
            f"{few([train[i] for i in places['train'][key]])}"
            for key in both
        ]
        n = sum(len(places[part][key]) for key in both)
        yield Finding(
            status="WARNING",
            topic=f"leaks, {part}",
            text=f"{n:,} of {len(ids):,} {part} samples are in the training set: metrics on them "
            f"say nothing about new ones",
            remedy="Split by sequences: --split random or --split identity keep equal ones "
            "together.",
            examples=sorted(lines)[:EXAMPLES],
            total=len(lines),
        )


def _shown(target: Any) -> str:
    text = f"{target:g}" if isinstance(target, float) else str(target)
    return text if len(text) <= 40 else f"{text[:40]}..."
