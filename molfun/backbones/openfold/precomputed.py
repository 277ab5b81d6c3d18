"""Check pre-computed features: missing keys, names, shapes, types and values.

A wrong feature dict makes openfold's pipeline and model fail with a ``KeyError`` or a shape error
in the middle of a run, or compute nonsense. Here it is checked before anything runs, and one error
lists everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from molfun.backbones.base import Features
from molfun.errors import DataError
from molfun.text import listing

ALPHAFOLD_NAMES = {
    "template_all_atom_masks": "template_all_atom_mask",
    "all_atom_masks": "all_atom_mask",
    "deletion_matrix": "deletion_matrix_int",
}
"""Other names of features that openfold's pipeline reads; most are AlphaFold's."""
RAW_SHAPES: dict[str, tuple[str | int, ...]] = {
    "aatype": ("length", 21),
    "residue_index": ("length",),
    "between_segment_residues": ("length",),
    "seq_length": ("length",),
    "msa": ("rows", "length"),
    "deletion_matrix_int": ("rows", "length"),
    "template_aatype": ("templates", "length", 22),
    "template_all_atom_positions": ("templates", "length", 37, 3),
    "template_all_atom_mask": ("templates", "length", 37),
}
"""Dimensions of the raw features that openfold's pipeline reads."""
PROCESSED_SHAPES: dict[str, tuple[str | int, ...]] = {
    "aatype": ("length",),
    "residue_index": ("length",),
    "target_feat": ("length", 22),
    "seq_mask": ("length",),
    "msa_feat": ("rows", "length", 49),
    "msa_mask": ("rows", "length"),
    "extra_msa": ("extra", "length"),
    "extra_msa_mask": ("extra", "length"),
    "extra_has_deletion": ("extra", "length"),
    "extra_deletion_value": ("extra", "length"),
    "atom37_atom_exists": ("length", 37),
    "residx_atom37_to_atom14": ("length", 37),
    "template_aatype": ("templates", "length"),
    "template_all_atom_positions": ("templates", "length", 37, 3),
    "template_all_atom_mask": ("templates", "length", 37),
    "template_mask": ("templates",),
    "template_pseudo_beta": ("templates", "length", 3),
    "template_pseudo_beta_mask": ("templates", "length"),
    "template_torsion_angles_sin_cos": ("templates", "length", 7, 2),
    "template_alt_torsion_angles_sin_cos": ("templates", "length", 7, 2),
    "template_torsion_angles_mask": ("templates", "length", 7),
}
"""Dimensions of the tensors that openfold's pipeline makes; the one of recycling passes, which
comes last, is not listed."""
RAW_INTEGERS = {
    "msa": (0, 21),
    "deletion_matrix_int": (0, 2**31 - 1),
    "residue_index": (-(2**31), 2**31 - 1),
    "between_segment_residues": (0, 2**31 - 1),
}
"""Smallest and largest value of each raw feature that holds integers."""
PROCESSED_INTEGERS = {
    "aatype": (0, 20),
    "residx_atom37_to_atom14": (0, 13),
    "extra_msa": (0, 22),
    "template_aatype": (0, 21),
    "residue_index": (-(2**31), 2**31),
}
"""The same for processed features."""

_TEMPLATES = tuple(key for key in RAW_SHAPES if key.startswith("template_"))
# AlphaFold-Multimer numbers the letters of an MSA in another order than monomer features do, and no
# shape would show it
_MULTIMER = ("asym_id", "entity_id", "sym_id")
_SAME_PROTEIN = 0.5
"""Smallest share of agreeing residues between the query of an MSA and the sequence. A designed
mutant still agrees in most; an unrelated protein, or another numbering of letters, does not."""


def check_raw(features: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return openfold's raw feature dict, with unambiguous differences in names and shapes removed.

    AlphaFold's names become openfold's. A dict without any ``template_`` key, or with empty ones,
    has no templates. Integers stored as other types become int32.

    Parameters
    ----------
    features
        Feature dict as AlphaFold, ColabFold or openfold write it.
    name
        Name of the sample in errors: its id and file.

    Raises
    ------
    DataError
        If keys are missing, or have a wrong shape, type or value; the text lists them all.
    """
    raw = {key: _array(value) for key, value in _renamed(features, name).items()}
    # in this order: each check relies on what the ones before have established
    _refuse_multimer(raw, name)
    _complete_templates(raw)
    _refuse_missing(raw, name)
    length = _length(raw, name)
    # once per residue, as openfold writes it; a single number is accepted
    raw["seq_length"] = np.full(length, length, np.int32)
    sizes: dict[str, int] = {"length": length}
    none = all(raw[key].shape[:1] == (0,) for key in _TEMPLATES)
    without = _TEMPLATES if none else ()
    shapes = {key: dims for key, dims in RAW_SHAPES.items() if key not in without}
    _raise([p for key, dims in shapes.items() if (p := _fit(raw, key, dims, sizes))], name)
    _raise(_values(raw), name)
    _raise(_of_another_protein(raw["aatype"].argmax(-1), raw["msa"][0]), name)
    if "num_alignments" in raw:  # checked above; openfold wants the number once per residue
        raw["num_alignments"] = np.full(length, len(raw["msa"]), np.int32)
    return _in_types_of_openfold(raw)


def _renamed(features: Mapping[str, Any], name: str) -> dict[str, Any]:
    renamed = dict(features)
    for theirs, ours in ALPHAFOLD_NAMES.items():
        if theirs in renamed:
            value = renamed.pop(theirs)
            if ours in renamed and not _equal(renamed[ours], value):
                raise DataError(f"{name}: {theirs} and {ours} are both there and differ. Keep one.")
            renamed[ours] = value
    return renamed


def _equal(left: Any, right: Any) -> bool:
    return bool(np.array_equal(_array(left), _array(right)))


def _array(value: Any) -> np.ndarray:
    """Return an array in the byte order of this machine, the only one that torch takes."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # NumPy has no bfloat16
        value = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _refuse_multimer(raw: Mapping[str, np.ndarray], name: str) -> None:
    found = [key for key in _MULTIMER if key in raw]
    if found:
        raise DataError(
            f"{name}: {', '.join(found)} are features of AlphaFold-Multimer, whose letters have "
            f"other numbers. Compute monomer features, or give the structure (--pdbs)."
        )


def _complete_templates(raw: dict[str, Any]) -> None:
    """Add openfold's empty templates if there are none: no ``template_`` keys, or empty ones."""
    from openfold.data.data_pipeline import empty_template_feats

    there = [key for key in raw if key.startswith("template_")]
    sized = set(_TEMPLATES) & set(there) or there
    if any(len(np.atleast_1d(raw[key])) for key in sized):
        return
    for key in there:
        del raw[key]
    if "aatype" in raw and raw["aatype"].ndim:
        raw.update(empty_template_feats(len(raw["aatype"])))


def _refuse_missing(raw: Mapping[str, Any], name: str) -> None:
    missing = [key for key in RAW_SHAPES if key not in raw]
    if missing:
        hint = " Without any template_ key there are no templates." * (missing[-1] in _TEMPLATES)
        raise DataError(
            f"{name}: the pre-computed features lack {', '.join(missing)}; expected openfold's raw "
            f"feature dict or the tensors of its FeaturePipeline. Compute them again.{hint}"
        )


def _length(raw: Mapping[str, np.ndarray], name: str) -> int:
    """Return the number of residues, on which seq_length, aatype and sequence have to agree."""
    found = {
        "seq_length": _one_number(raw["seq_length"]),
        "aatype": len(raw["aatype"]) if raw["aatype"].ndim else None,
    }
    text = raw["sequence"].reshape(-1)[:1].tolist() if "sequence" in raw else []
    if text and isinstance(text[0], (str, bytes)):
        found["sequence"] = len(text[0])
    if None in found.values() or len(set(found.values())) > 1:
        counts = ", ".join(f"{key} {'no number' if n is None else n}" for key, n in found.items())
        raise DataError(f"{name}: the lengths disagree: {counts}. Compute the features again.")
    return len(raw["aatype"])


def _one_number(array: np.ndarray) -> int | None:
    """Return the whole number that is the value of every element; None for anything else."""
    if array.dtype.kind not in "iuf" or not array.size:
        return None
    first = array.reshape(-1)[0]
    same = np.isfinite(first) and first == np.trunc(first) and bool((array == first).all())
    return int(first) if same else None


def _fit(
    raw: dict[str, Any], key: str, expected: tuple[str | int, ...], sizes: dict[str, int]
) -> str | None:
    """Check a shape and note the sizes of its named dimensions; return what is wrong, or None."""
    array = raw[key]
    if array.ndim == len(expected) + 1 and array.shape[-1] == 1:
        raw[key] = array = array[..., 0]  # openfold's pipeline squeezes such dimensions as well
    bound = {**sizes}
    if len(array.shape) == len(expected) and all(
        bound.setdefault(dim, size) == size if isinstance(dim, str) else dim == size
        for dim, size in zip(expected, array.shape, strict=True)
    ):
        sizes.update(bound)
        return None
    return f"{key} has shape {tuple(array.shape)}; expected {_shown(expected, sizes)}"


def _shown(dims: Sequence[str | int], sizes: Mapping[str, int]) -> str:
    """Return dimensions as text, with known sizes: ``(rows, length 73)``."""
    words = [f"{d} {sizes[d]}" if d in sizes else str(d) for d in map(str, dims)]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _raise(problems: Sequence[str], name: str) -> None:
    if len(problems) == 1:
        raise DataError(f"{name}: {problems[0]}. Compute the features again.")
    if problems:
        raise DataError(
            f"{name}: {len(problems)} of the pre-computed features are wrong:\n"
            f"{listing(problems)}\nCompute the features again."
        )


def _wrong_values(
    arrays: Mapping[str, np.ndarray], integers: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Return a text per array that should hold integers in a range, or finite numbers."""
    found = [
        _not_integers(array, key, *integers[key]) if key in integers else _not_finite(array, key)
        for key, array in arrays.items()
    ]
    return list(filter(None, found))


def _in_types_of_openfold(raw: dict[str, Any]) -> dict[str, Any]:
    """Convert arrays to types that openfold's pipeline takes, in place; return the dict."""
    for key in RAW_SHAPES:
        # arrays of such a type are not copied: an MSA can take gigabytes
        integer = key in RAW_INTEGERS or raw[key].dtype.kind in "bu"
        taken = ("int32", "int64") if key in RAW_INTEGERS else ("int32", "int64", "float32")
        if raw[key].dtype.name not in taken:
            raw[key] = raw[key].astype(np.int32 if integer else np.float32)
    return raw


def _not_integers(array: np.ndarray, key: str, smallest: int, largest: int) -> str | None:
    if array.dtype.kind not in "iufb":
        return f"{key} holds {_kind(array)}; expected integers"
    if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
        # also reached by NaN, which is not equal to itself
        return f"{key} holds {'NaN' if np.isnan(array).any() else 'fractions'}; expected integers"
    if array.size and not (smallest <= array.min() and array.max() <= largest):
        return f"{key} holds {array.min()} to {array.max()}; expected {smallest} to {largest}"
    return None


def _values(raw: Mapping[str, np.ndarray]) -> list[str]:
    problems = _wrong_values({k: raw[k] for k in (*RAW_INTEGERS, *_TEMPLATES)}, RAW_INTEGERS)
    aatype = raw["aatype"]
    if aatype.dtype.kind not in "iufb" or not (
        np.all((aatype == 0) | (aatype == 1)) and np.all(aatype.sum(-1) == 1)
    ):
        problems.append("aatype is not one-hot (one 1 in each row, for the residue's letter)")
    if not len(raw["msa"]):
        problems.append("msa has no rows; the first is the sequence itself")
    if "num_alignments" in raw and _one_number(raw["num_alignments"]) != len(raw["msa"]):
        given = _one_number(raw["num_alignments"])
        said = "no one number" if given is None else given
        problems.append(f"num_alignments is {said}, and msa has {len(raw['msa'])} rows")
    return problems


def _not_finite(array: np.ndarray, key: str) -> str | None:
    if array.dtype.kind not in "iufb":
        return f"{key} holds {_kind(array)}; expected numbers"
    bad = int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
    return f"{key} holds {bad:,} values that are NaN or infinite" if bad else None


def _kind(array: np.ndarray) -> str:
    return "text" if array.dtype.kind in "OSU" else str(array.dtype)


def _of_another_protein(aatype: np.ndarray, query: np.ndarray) -> list[str]:
    """Return a problem if the query of the MSA and the sequence are different proteins.

    The query is numbered in HHblits' order of letters, the sequence in AlphaFold's.
    """
    from openfold.np.residue_constants import MAP_HHBLITS_AATYPE_TO_OUR_AATYPE

    mapped = np.asarray(MAP_HHBLITS_AATYPE_TO_OUR_AATYPE)[query.astype(np.int64)]
    # unknown residues and gaps say nothing
    known = (mapped < 20) & (aatype < 20)
    agree = int((mapped == aatype)[known].sum())
    if agree >= _SAME_PROTEIN * known.sum():
        return []
    return [
        f"the first row of msa agrees with aatype in {agree} of {known.sum()} residues: it is of "
        f"another protein, or its letters are not numbered as HHblits numbers them"
    ]


# Processed features


def check_processed(features: Mapping[str, Any], name: str, needed: Sequence[str]) -> Features:
    """Check tensors of openfold's pipeline, and move a leading recycling dimension to the end.

    Raises
    ------
    DataError
        If keys are missing, or have a wrong shape, type or value; the text lists them all.
    """
    named = _renamed(features, name)
    missing = [key for key in needed if key not in named]
    if missing:
        raise DataError(
            f"{name}: the pre-computed features lack {', '.join(missing)}. Store the whole dict of "
            f"openfold's FeaturePipeline, or the raw features."
        )
    arrays = {key: _array(named[key]) for key in needed}
    arrays = _recycling_last(arrays, name)
    _raise(_wrong_values(arrays, PROCESSED_INTEGERS), name)
    return {key: _tensor(key, array) for key, array in arrays.items()}


def _recycling_last(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the arrays with the recycling dimension last, if their shapes are then right."""
    problems = _misfits(arrays)
    if not problems:
        return arrays
    # a dict whose passes were stacked has their dimension first
    moved = {key: np.moveaxis(array, 0, -1) for key, array in arrays.items() if array.ndim}
    if len(moved) < len(arrays) or _misfits(moved):
        raise DataError(_wrong_layout(arrays, problems, name))
    return moved


def _misfits(arrays: Mapping[str, np.ndarray]) -> list[str]:
    sizes: dict[str, int] = {}
    expected = {key: (*PROCESSED_SHAPES[key], "recycling") for key in arrays}
    fitted = {**arrays}
    return [p for key, dims in expected.items() if (p := _fit_exactly(fitted, key, dims, sizes))]


def _fit_exactly(
    arrays: dict[str, Any], key: str, expected: tuple[str | int, ...], sizes: dict[str, int]
) -> str | None:
    shape = arrays[key].shape
    if len(shape) != len(expected):
        return f"{key} has shape {tuple(shape)}; expected {_shown(expected, sizes)}"
    return _fit(arrays, key, expected, sizes)


def _wrong_layout(arrays: Mapping[str, np.ndarray], problems: list[str], name: str) -> str:
    extra = {key: a.ndim - len(PROCESSED_SHAPES[key]) for key, a in arrays.items()}
    if set(extra.values()) == {0}:
        return (
            f"{name}: the features have no recycling dimension: aatype has shape "
            f"{arrays['aatype'].shape}; expected (length, recycling). Add it behind the others, "
            f"value[..., None]."
        )
    if set(extra.values()) == {2}:
        return (
            f"{name}: aatype has shape {arrays['aatype'].shape}; expected (length, recycling), "
            f"recycling last, without a batch dimension."
        )
    return (
        f"{name}: {len(problems)} of the pre-computed features have wrong shapes:\n"
        f"{listing(problems)}\nThe recycling dimension comes last. Compute the features again."
    )


def _tensor(key: str, array: np.ndarray) -> torch.Tensor:
    """Return a tensor; no templates or extra sequences become one masked row, as in openfold."""
    kind = np.int64 if key in PROCESSED_INTEGERS else np.float32
    if PROCESSED_SHAPES[key][0] in ("templates", "extra") and len(array) == 0:
        array = np.zeros((1, *array.shape[1:]), kind)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
