"""Variants of one wild type across the split: they are all alike, so positions are what is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from molfun.checks.data.subject import Subject
from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.base import SampleDataset
from molfun.data.variant_tables import mutated_places

MOST_MUTATED = 0.1
"""Share of the residues in which all sequences of a table differ from their most common letters at
most, for them to be variants of one protein."""
MOST_READ = 1000
"""Sequences of which the most common letters are taken."""
ON_PURPOSE = ("n_mutations", "low_to_high")
"""Splits that ask for another thing than new positions."""

Places = dict[str, list[frozenset[int]]]
"""Mutated places, from 0, of each sample by part."""


def mutated(subject: Subject) -> Places | None:
    """Return the places at which the samples differ from their wild type; None if they have none.

    The wild type is that of the table, or the most common letter of each position where all
    sequences have one length and hardly differ from it.
    """
    if subject.kind.name != "sequences":
        return None
    known = _wild_type(subject)
    protein = known or _consensus(subject.parts["train"].sequences())
    if protein is None:
        return None
    places = {}
    for name, part in subject.parts.items():
        if not _all_of_length(part, len(protein)):
            return None
        places[name] = mutated_places(part, protein)
    return places if known or _are_few(places, len(protein)) else None


def _wild_type(subject: Subject) -> str | None:
    found: str | None = getattr(subject.parts["train"], "wild_type", None)
    return found


def _all_of_length(part: SampleDataset, length: int) -> bool:
    return all(len(chains) == 1 and len(chains[0]) == length for chains in part.sequences())


def _are_few(places: Places, length: int) -> bool:
    most = max(1, int(MOST_MUTATED * length))
    return all(len(own) <= most for part in places.values() for own in part)


def _consensus(chains: Sequence[tuple[str, ...]]) -> str | None:
    """Return the most common letters of sequences of one length; None for others."""
    drawn = np.linspace(0, len(chains) - 1, min(len(chains), MOST_READ)).astype(int)
    texts = [chains[i][0].upper() for i in drawn if len(chains[i]) == 1]
    if len(texts) < max(2, len(drawn)) or len(set(map(len, texts))) > 1:
        return None
    columns = zip(*texts, strict=True)
    return "".join(Counter(column).most_common(1)[0][0] for column in columns)


def positions(subject: Subject, part: str, places: Places) -> Finding:
    """Say how many variants of a part are mutated where variants of the training set are."""
    train, own = (_counts(places[name]) for name in ("train", part))
    both = sorted(train.keys() & own.keys(), key=lambda p: (-own[p], p))
    n = sum(not one.isdisjoint(train) for one in places[part])
    wrong = n > 0 and subject.split not in ON_PURPOSE
    named = "" if _wild_type(subject) else " --wild-type FASTA"
    offset = int(subject.parts["train"].input_settings.get("offset") or 0)
    return Finding(
        status="WARNING" if wrong else "OK",
        topic=f"positions, {part}",
        text=f"variants of one wild type; {n:,} of {len(places[part]):,} are mutated at positions "
        f"where training variants are",
        remedy=f"--split position{named} keeps all variants of a position in one part."
        if wrong
        else "",
        examples=[
            f"position {p + 1 + offset}: {train[p]:,} training, {own[p]:,} {part}"
            for p in both[:EXAMPLES]
        ],
        total=len(both),
        facts={"seen": n, "compared": len(places[part]), "positions": len(own)},
    )


def _counts(places: Sequence[frozenset[int]]) -> Counter[int]:
    return Counter(place for one in places for place in one)
