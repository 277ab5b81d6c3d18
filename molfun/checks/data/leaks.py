"""Sequence identity between the training set and what judges the model; positions of variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from molfun.checks.data import variants
from molfun.checks.data.duplicates import has_sequences
from molfun.checks.data.subject import Subject
from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.clusters import SHORT, comparable, identity, nearest_by_words, words_of

MOST_TRAIN, MOST_HELD_OUT = 20_000, 300
"""Chains that are compared at most."""
MOST_ALIGNED = 3 * EXAMPLES
"""Pairs that are aligned to find the ten closest; one of 1,000 residues takes 0.1 s."""
WORD = 3
"""Letters of the words by which pairs are found."""
CLOSE = 0.9
"""Identity from which on two proteins mostly have the same structure and function."""
BY_CHANCE = 0.3
"""Identity below which a pair is not shown: unrelated proteins reach it (Rost 1999)."""


def check(subject: Subject) -> Iterator[Finding]:
    """Show the ten pairs of highest identity across the split; of variants, shared positions."""
    if not has_sequences(subject) or "train" not in subject.parts:
        return
    judged = [part for part in ("val", "test") if part in subject.parts]
    # variants of one protein are all alike: a split by identity would put them in one part
    places = variants.mutated(subject) if judged else None
    for part in judged:
        if places is None:
            yield _across(subject, part)
        else:
            yield variants.positions(subject, part, places)


def _across(subject: Subject, part: str) -> Finding:
    train_names, train = _chains(subject, "train", MOST_TRAIN)
    names, chains = _chains(subject, part, MOST_HELD_OUT)
    near = nearest_by_words(chains, train)
    pairs = [(chain, train[place]) for chain, place in zip(chains, near, strict=True)]
    values = dict.fromkeys(range(len(chains)), 0.0)
    values |= {i: identity(*pairs[i]) for i in _worth_aligning(pairs)}
    worst = sorted(values, key=lambda i: -values[i])[:EXAMPLES]
    top, close = max(values.values()), sum(value >= CLOSE for value in values.values())
    text = f"highest identity to a training sequence {top:.0%}"
    if close:
        text += f"; {close:,} of {len(chains):,} chains have {CLOSE:.0%} or more"
    if max(len(chains) / MOST_HELD_OUT, len(train) / MOST_TRAIN) >= 1:
        text += f" ({len(chains):,} against {len(train):,} were compared)"
    return Finding(
        status="WARNING" if close else "OK",
        topic=f"identity, {part}",
        text=text,
        remedy="--split identity keeps similar sequences in one part." if close else "",
        examples=[
            f"{values[i]:.0%}  {names[i]}  {train_names[near[i]]}"
            for i in worst
            if values[i] >= BY_CHANCE
        ],
        facts={"highest": top, "close": close, "compared": len(chains)},
    )


def _worth_aligning(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Return the pairs that share most words, and all that may have an identity of `CLOSE`.

    A residue that differs is in three words, so few words can be lost above `CLOSE`.
    """
    shorter, longer = (words_of([of(p, key=len) for p in pairs], WORD) for of in (min, max))
    held = np.diff(shorter.indptr)
    shared = np.asarray(shorter.multiply(longer).sum(axis=1))
    lengths = np.array([min(map(len, pair)) for pair in pairs])
    may_be_close = held - shared <= np.ceil(WORD * (1 - CLOSE) * lengths) + WORD
    may_be_close |= lengths <= SHORT
    order = np.argsort(-shared / np.maximum(1, held), kind="stable")
    return sorted({*order[:MOST_ALIGNED].tolist(), *np.flatnonzero(may_be_close).tolist()})


def _chains(subject: Subject, part: str, most: int) -> tuple[list[str], list[str]]:
    """Return chains of a part, each once and with its sample; evenly drawn if there are many."""
    data = subject.parts[part]
    of: dict[str, str] = {}
    for name, sample in zip(data.ids, data.sequences(), strict=True):
        for chain in sample:
            of.setdefault(comparable(chain), name)
    chains: Sequence[str] = list(of)
    if len(chains) > most:
        chains = [chains[i] for i in np.linspace(0, len(chains) - 1, most).astype(int)]
    return [of[chain] for chain in chains], list(chains)
