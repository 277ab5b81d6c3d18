"""Find values of structures that look like labels, by name and shape, and are not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from molfun.data.atoms_labels import Frame, as_array, as_label, kind_of, names_in, per_atom
from molfun.errors import DataError

MANY = 5
"""Most names that a message lists."""
IN_MEMORY = "Structures"
"""Origin of structures that were read from no file."""


@dataclass
class _Unused:
    """Columns that look like one kind of label: how many structures have each."""

    counts: Counter[str] = field(default_factory=Counter)
    shapes: dict[str, str] = field(default_factory=dict)
    differs: set[str] = field(default_factory=set)


def unused_labels(
    frames: Sequence[Frame],
    names: Mapping[str, str],
    where: str,
    *,
    ignored: Collection[str] = (),
) -> Iterator[str]:
    """Name what looks like a label and is not used: a text for each kind.

    Parameters
    ----------
    frames
        The structures.
    names
        Name of each kind that is used.
    where
        What they were read from.
    ignored
        Kinds that are left out on purpose.
    """
    kinds = {name: kind_of(name) for name in names_in(frames) if name not in names.values()}
    maybe = {name: kind for name, kind in kinds.items() if kind and kind not in ignored}
    found = _count_unused(frames, names, maybe)
    for kind in ("energy", "forces", "gradient", "stress", "virial"):
        if kind in found and found[kind].differs:
            yield f"{where}: {_sentence(kind, found[kind], frames, names.get(kind), where)}"


def _count_unused(
    frames: Sequence[Frame], names: Mapping[str, str], maybe: Mapping[str, str]
) -> dict[str, _Unused]:
    """Count, by kind, the structures in which a name of `maybe` has the shape of its kind."""
    found: dict[str, _Unused] = {}
    for frame in frames:
        for name in maybe.keys() & frame.columns.keys():
            kind = maybe[name]
            shape = _shape_of(kind, as_array(frame.get(name)), len(frame.atoms))
            if shape is None:
                continue
            entry = found.setdefault(kind, _Unused())
            entry.counts[name] += 1
            entry.shapes[name] = shape
            if not _is_copy(kind, name, frame, names):
                entry.differs.add(name)
    return found


def _is_copy(kind: str, name: str, frame: Frame, names: Mapping[str, str]) -> bool:
    """Return True for a column that says no more than the used label of its kind."""
    same = {"stress": "virial", "virial": "stress", "gradient": "forces"}
    candidates = (kind, same.get(kind, ""))
    used = next((k for k in candidates if frame.get(names.get(k)) is not None), None)
    if used is None:
        return False
    try:
        ours = as_label({used: frame.get(names[used])}, frame.atoms)
        theirs = as_label({kind: frame.get(name)}, frame.atoms)
    except DataError:
        return False
    if kind == "gradient":
        theirs = {"forces": -theirs["gradient"]}
    # a virial was rounded before it was divided by the volume
    rtol = 1e-9 if used == kind else 1e-3
    return all(np.allclose(ours[k], theirs[k], rtol=rtol, equal_nan=True) for k in ours)


def _shape_of(kind: str, array: np.ndarray, n_atoms: int) -> str | None:
    """Describe the shape of a value in words; None if no label of that kind has it."""
    if array.dtype.kind not in "fiu":
        return None
    if kind in ("forces", "gradient"):
        return "3 numbers per atom" if array.shape == (n_atoms, 3) else None
    if kind == "energy":
        return "one number per structure" if array.shape in ((), (1,)) else None
    return f"{array.size} numbers per structure" if array.size in (6, 9) else None


def _sentence(
    kind: str, entry: _Unused, frames: Sequence[Frame], used: str | None, where: str
) -> str:
    # a second copy of what is used is no loss
    names = [name for name, _ in entry.counts.most_common() if name in entry.differs]
    listed = ", ".join(
        f"{name!r} ({entry.shapes[name]}) in {entry.counts[name]:,} of {len(frames):,} structures"
        for name in names[:MANY]
    )
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    verb = "is" if len(names) == 1 else "are"
    is_read = any(frame.get(used) is not None for frame in frames)
    read = f" (the {kind} read is {used!r})" if is_read else ""
    advice = _advice(kind, names[0], in_memory=where == IN_MEMORY)
    return f"{listed}{more} {verb} not used{read}. {advice}"


def _advice(kind: str, name: str, *, in_memory: bool) -> str:
    if kind == "gradient":
        return (
            "Forces are minus the gradient: write them with that sign, and name them with "
            "forces_key (--forces-key)."
        )
    if kind == "energy" and per_atom(name):
        return (
            "Labels are energies of whole structures: multiply it by the number of atoms, and "
            "name it with energy_key (--energy-key)."
        )
    argument = f"{kind}_key"
    if in_memory:
        return f"Use it with AtomsDataset.from_atoms(..., {argument}={name!r})."
    return f"Use it with {argument}={name!r} (--{argument.replace('_', '-')} {name})."
