"""Count the changes, choices and omissions of the reader of structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from molfun.checks.data.subject import Subject
from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.structure_files import StructureFiles

LEFT_OUT = ("ligands left out", "nucleic acids left out", "CA atoms only", "residues without CA",
            "atoms at (0, 0, 0)", "residues without coordinates")  # fmt: skip
"""Kinds of notes by which the model sees less than the file shows."""


def check(subject: Subject) -> Iterator[Finding]:
    """Count the structures with each kind of note."""
    kinds: dict[str, list[str]] = defaultdict(list)
    n = 0
    for data in subject.parts.values():
        if not isinstance(data, StructureFiles):
            return
        n += len(data)
        for name, notes in data.notes().items():
            for note in notes:
                kinds[getattr(note, "kind", "other")].append(f"{name}: {note}")
    for kind, lines in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        less = kind in LEFT_OUT
        yield Finding(
            status="WARNING" if less else "OK",
            topic="structures",
            text=f"{kind} in {len(lines):,} of {n:,}",
            examples=lines[:EXAMPLES] if less else (),
            total=len(lines),
            facts={"kind": kind, "n": len(lines), "of": n},
        )
