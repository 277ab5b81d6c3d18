"""Counts, lengths and labels of the parts of a data set, as plain values for a report."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from molfun.data.base import SampleDataset
from molfun.data.named_targets import NamedTargets
from molfun.sample import is_missing, single_label

BINS = 30
"""Bins of a histogram; more show the noise of a few hundred samples."""


def summarise(parts: Mapping[str, SampleDataset | None]) -> dict[str, Any]:
    """Count samples, lengths, labels and repeated inputs of each part.

    Parameters
    ----------
    parts
        Data sets by the name of the part; None where there is none.

    Returns
    -------
    dict
        ``n`` and ``repeated`` (samples whose input occurs earlier in the same part) by part,
        ``shared`` (inputs that two parts have in common), ``lengths``, and ``labels`` by head (a
        single head has the name ``""``; structures as labels are left out). Histograms have common
        ``edges`` and ``counts`` by part; labels that are classes have ``counts`` by part and class.

    Examples
    --------
    >>> from molfun.data import SequenceDataset
    >>> train = SequenceDataset.from_list([("MKV", 1.0), ("MKV", 1.5), ("GG", None)])
    >>> found = summarise({"train": train, "val": None})
    >>> found["n"], found["repeated"], found["labels"][""]["missing"]
    ({'train': 3}, {'train': 1}, {'train': 1})
    """
    present = _present(parts)
    labels: dict[str, dict[str, list[Any]]] = {}
    for name, part in present.items():
        for head, targets in _by_head(part):
            labels.setdefault(head, {})[name] = targets
    return {
        "n": {name: len(part) for name, part in present.items()},
        **_repeats({name: _inputs(part) for name, part in present.items()}),
        "lengths": _lengths(present),
        "labels": {head: _labels(found) for head, found in labels.items()},
    }


MOST_SUMMARISED = 200_000
"""Samples of which inputs and letters are counted; those of pre-training may be many more."""


def summarise_inputs(parts: Mapping[str, SampleDataset | None]) -> dict[str, Any]:
    """Count samples, lengths, repeated inputs and letters of each part, without labels.

    Parameters
    ----------
    parts
        Data sets by the name of the part; None where there is none.

    Returns
    -------
    dict
        As of `summarise`, without ``labels``. For sequences ``letters`` counts the residues of each
        part. Of more than 200,000 samples only numbers and lengths are counted.

    Examples
    --------
    >>> from molfun.data import SequenceDataset
    >>> summarise_inputs({"train": SequenceDataset.from_list(["MKM"])})["letters"]
    {'train': {'K': 1, 'M': 2}}
    """
    present = _present(parts)
    found: dict[str, Any] = {
        "n": {name: len(part) for name, part in present.items()},
        "lengths": _lengths(present),
    }
    if sum(map(len, present.values())) > MOST_SUMMARISED:
        return found
    inputs = {name: _inputs(part) for name, part in present.items()}
    found |= _repeats(inputs)
    if all(part[0].sequence is not None for part in present.values()):
        found["letters"] = {name: _letter_counts(part) for name, part in present.items()}
    return found


def _present(parts: Mapping[str, SampleDataset | None]) -> dict[str, SampleDataset]:
    return {name: part for name, part in parts.items() if part is not None and len(part)}


def _lengths(parts: Mapping[str, SampleDataset]) -> dict[str, Any]:
    return _histogram({name: part.lengths for name, part in parts.items()})


def _letter_counts(part: SampleDataset) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for texts in part.sequences():
        counts.update("".join(texts).upper())
    return dict(sorted(counts.items()))


def _repeats(inputs: Mapping[str, Counter[tuple[str, ...]]]) -> dict[str, dict[str, int]]:
    """Count inputs that occur again in their part, and in another one."""
    return {
        "repeated": {name: n.total() - len(n) for name, n in inputs.items()},
        "shared": {
            f"{one}, {other}": len(inputs[one].keys() & inputs[other].keys())
            for one, other in itertools.combinations(inputs, 2)
        },
    }


def _inputs(part: SampleDataset) -> Counter[tuple[str, ...]]:
    first = part[0]
    if first.sequence is None and first.protein is None:
        # the texts of series are names of their groups, which say nothing about another file
        return Counter((part[i].content_key(),) for i in range(len(part)))
    # in either case a sequence is the same input, as in splits by identity
    return Counter(tuple(text.upper() for text in texts) for texts in part.sequences())


def _by_head(part: SampleDataset) -> Iterator[tuple[str, list[Any]]]:
    """Yield the labels of each head; energies where there are energies and forces.

    Structures are not counted.
    """
    parts = part.parts if isinstance(part, NamedTargets) else {"": part}
    for name, one in parts.items():
        if one.labels_from_structure:
            continue
        targets = [single_label(target) for target in one.targets]
        of_residues = one.input_settings.get("level") == "residue"
        yield name, [*map(letters_of, targets)] if of_residues else targets


def letters_of(target: Any) -> Any:
    """Split a text with a class per residue, which data sets keep where none is missing."""
    if not isinstance(target, str):
        return target
    return target.split(";") if ";" in target else [*target]


def _labels(by_part: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Count classes, or numbers in bins; labels of residues count one by one."""
    missing = {name: sum(map(is_missing, targets)) for name, targets in by_part.items()}
    flat = {name: [*_flat(targets)] for name, targets in by_part.items()}
    if any(isinstance(value, str) for values in flat.values() for value in values):
        counts = {n: dict(sorted(Counter(map(str, values)).items())) for n, values in flat.items()}
        return {"kind": "class", "counts": counts, "missing": missing}
    numbers = {name: np.asarray(values, dtype=float) for name, values in flat.items()}
    return {"kind": "number", **_histogram(numbers), "missing": missing}


def _flat(targets: Iterable[Any]) -> Iterator[Any]:
    """Yield every label that is present, of each residue or class where a sample has several."""
    for target in targets:
        if isinstance(target, list | tuple):
            yield from (one for one in target if not is_missing(one))
        elif isinstance(target, np.ndarray) and target.ndim:
            yield from target[np.isfinite(target)].reshape(-1)
        elif not is_missing(target):
            yield target


def _histogram(by_part: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return counts in common bins, and mean, deviation, least, median and largest by part."""
    every = np.concatenate([*by_part.values(), np.zeros(0)])
    every = every[np.isfinite(every)]
    edges = _edges(every) if every.size else np.zeros(2)
    return {
        "edges": edges.tolist(),
        "counts": {name: np.histogram(v, edges)[0].tolist() for name, v in by_part.items()},
        "numbers": {name: _numbers(v) for name, v in by_part.items() if v.size},
    }


def _edges(values: np.ndarray) -> np.ndarray:
    """Return borders of bins; of whole numbers each bin holds as many, else bars have gaps."""
    low, high = values.min(), values.max()
    if low == high or (values % 1).any():
        return np.histogram_bin_edges(values, bins=BINS)
    width = np.ceil((high - low + 1) / BINS)
    edges: np.ndarray = np.arange(low - 0.5, high + width, width)
    return edges


def _numbers(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }
