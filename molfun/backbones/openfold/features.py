"""Compute the features of a protein with openfold's own data and feature pipeline.

No feature is computed here: this module brings a `Protein` (or a raw feature dict) into the form
that openfold's pipeline takes, chooses its sizes, and pads its results into batches.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molfun.backbones.base import Features
from molfun.backbones.openfold.alignments import read_alignments
from molfun.errors import ConfigError, DataError, MolfunError, UnsafeFileError
from molfun.nn.process import seeded, settled
from molfun.protein import Protein
from molfun.trunk import padded_cat

MODEL_INPUTS = (
    "aatype", "residue_index", "target_feat", "seq_mask", "msa_feat", "msa_mask",
    "extra_msa", "extra_msa_mask", "extra_has_deletion", "extra_deletion_value",
    "atom37_atom_exists", "residx_atom37_to_atom14",
    "template_aatype", "template_all_atom_positions", "template_all_atom_mask", "template_mask",
    "template_pseudo_beta", "template_pseudo_beta_mask", "template_torsion_angles_sin_cos",
    "template_alt_torsion_angles_sin_cos", "template_torsion_angles_mask",
)  # fmt: skip
"""Keys that ``AlphaFold.forward`` reads (found by leaving them out one at a time)."""
MAX_LENGTH = 4096
"""Most residues of a sample: their pair representation alone takes 9 GB."""
EMPTY_FEATURES = {
    "template_torsion_angles_sin_cos": ("NUM_TEMPLATES", "NUM_RES", None, None),
    "extra_has_deletion": ("NUM_EXTRA_SEQ", "NUM_RES"),
    "extra_deletion_value": ("NUM_EXTRA_SEQ", "NUM_RES"),
}


def raw_from_protein(protein: Protein, alignment_dir: Path | None) -> dict[str, Any]:
    """Return openfold's raw feature dict of a protein: sequence, structure, MSA, no templates."""
    from openfold.data import data_pipeline
    from openfold.np import protein as openfold_protein

    structure = openfold_protein.Protein(
        atom_positions=protein.atom_positions,
        aatype=protein.aatype,
        atom_mask=protein.atom_mask,
        residue_index=protein.residue_index,
        b_factors=protein.b_factors,
        chain_index=protein.chain_index,
    )
    raw = data_pipeline.make_pdb_features(structure, protein.name, is_distillation=False)
    # openfold counts residues 0..n-1; a protein's own numbers keep chain breaks and chain ends
    # visible to the relative positions of AlphaFold (supplement, algorithm 4)
    raw["residue_index"] = protein.residue_index.astype(np.int32)
    raw.update(data_pipeline.empty_template_feats(len(protein)))
    raw.update(_msa_features(protein, alignment_dir))
    return raw


def _msa_features(protein: Protein, alignment_dir: Path | None) -> dict[str, Any]:
    """Return the MSA of the full sequence, cut to the residues of the crop."""
    pipeline = _pipeline()
    # for an empty folder openfold makes the MSA of one row: the sequence itself
    with tempfile.TemporaryDirectory() as empty:
        folder = str(alignment_dir) if alignment_dir is not None else empty
        try:
            msa = dict(pipeline._process_msa_feats(folder, protein.full_sequence))
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{protein.name}: {error}") from error
        except DataError as error:
            raise DataError(f"{protein.name}: {error}") from error
        except MolfunError:
            raise
        except (KeyError, ValueError, IndexError, OSError) as error:
            raise DataError(
                f"{protein.name}: the alignments in {folder} cannot be read ({error!r})."
            ) from error
    columns = _query_columns(protein, msa["msa"][0], folder)
    kept = columns[protein.positions]
    msa["msa"] = msa["msa"][:, kept]
    msa["deletion_matrix_int"] = msa["deletion_matrix_int"][:, kept]
    msa["num_alignments"] = msa["num_alignments"][kept]
    return msa


def _pipeline() -> Any:
    """Return openfold's data pipeline with Molfun's reader of alignments instead of its parsers."""
    from openfold.data.data_pipeline import DataPipeline

    class Checked(DataPipeline):
        def _parse_msa_data(self, alignment_dir: str, *_index: Any, **_k: Any) -> dict[str, Any]:
            return read_alignments(Path(alignment_dir))

    return Checked(template_featurizer=None)


def _query_columns(protein: Protein, query: np.ndarray, folder: str) -> np.ndarray:
    """Return the column of the alignment for each residue of the full sequence."""
    from openfold.np import residue_constants

    letters = "".join(residue_constants.ID_TO_HHBLITS_AA[int(i)] for i in query)
    if len(letters) == len(protein.full_sequence) and _agree(letters, protein.full_sequence):
        return np.arange(len(letters))
    return _align(protein, letters, folder)


def _agree(left: str, right: str) -> bool:
    return all(a == b or "X" in (a, b) for a, b in zip(left, right, strict=True))


def _align(protein: Protein, query: str, folder: str) -> np.ndarray:
    """Return the columns of the observed residues in a longer query (the deposited sequence)."""
    from Bio.Align import PairwiseAligner

    # A mismatch costs more than two gaps: residues missing from a structure become gaps, and a
    # substitution is refused below.
    aligner = PairwiseAligner(match_score=2, mismatch_score=-3, gap_score=-0.5)
    best = aligner.align(query, protein.full_sequence)[0]
    columns = np.full(len(protein.full_sequence), -1)
    for (q0, q1), (s0, s1) in zip(*best.aligned, strict=True):
        columns[s0:s1] = np.arange(q0, q1)
    placed = [c >= 0 and _agree(query[c], protein.full_sequence[i]) for i, c in enumerate(columns)]
    if not all(placed):
        raise DataError(
            f"{protein.name}: the query of the alignments in {folder} has {len(query)} residues "
            f"and does not contain the {len(protein.full_sequence)} of the structure "
            f"({placed.count(False)} do not match). Align the sequence of this structure."
        )
    return columns


def raw_length(raw: Mapping[str, Any]) -> int:
    """Return the number of residues of a raw feature dict."""
    return int(np.asarray(raw["seq_length"]).reshape(-1)[0])


def check_length(length: int, name: str) -> None:
    """Refuse lengths that openfold cannot take: it squeezes dimensions of size 1 away."""
    if length < 2:
        raise DataError(f"{name} has {length} residues; openfold takes 2 or more.")
    if length > MAX_LENGTH:
        raise DataError(
            f"{name} has {length} residues; at most {MAX_LENGTH} fit any machine. Crop it: "
            f"--max-length 512 (max_length=512)."
        )


def crop_raw(raw: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    """Return the middle window of at most `max_length` residues of a raw feature dict."""
    length = raw_length(raw)
    if max_length is None or length <= max_length:
        return dict(raw)
    start = (length - max_length) // 2
    window = slice(start, start + max_length)

    def residues_second(key: str) -> bool:
        return key.startswith(("msa", "deletion_matrix", "template_")) and np.ndim(raw[key]) > 1

    cropped = {}
    for key, value in raw.items():
        array = np.asarray(value)
        if residues_second(key) and array.shape[1] == length:
            cropped[key] = array[:, window]
        elif array.ndim and array.shape[0] == length and array.dtype != object:
            cropped[key] = array[window]
        else:
            cropped[key] = array
    cropped["seq_length"] = np.full(max_length, max_length, np.int32)
    return cropped


def data_config(
    config: Any,
    *,
    recycling: int,
    max_msa_clusters: int | None = None,
    max_extra_msa: int | None = None,
    mask_msa: bool = False,
) -> Any:
    """Copy the data section of a config with the backbone's own choices written into it.

    Parameters
    ----------
    config
        ``config.data`` of an openfold config.
    recycling
        Number of recycling passes (0: one pass through the trunk).
    max_msa_clusters, max_extra_msa
        Largest numbers of MSA rows; None keeps the config's.
    mask_msa
        Whether 15 % of the MSA is masked at random, as in AlphaFold's training. Off by default, so
        that a sample always gives the same input.
    """
    data = copy.deepcopy(config)
    with data.unlocked():
        data.common.max_recycling_iters = recycling
        if not mask_msa:
            data.predict.masked_msa_replace_fraction = 0.0
        if max_msa_clusters is not None:
            data.predict.max_msa_clusters = max_msa_clusters
        if max_extra_msa is not None:
            data.predict.max_extra_msa = max_extra_msa
    return data


def process(raw: Mapping[str, Any], data: Any, *, seed: int) -> Features:
    """Run openfold's FeaturePipeline in "predict" mode; the last dimension is the recycling one.

    The pipeline pads every sample to the largest MSA of its config (512 + 5120 rows). The sizes are
    lowered here to those of the sample; the trunk masks padding, so this changes cost, not results.
    """
    from openfold.data.feature_pipeline import FeaturePipeline

    depth = len(raw["msa"])
    templates = len(raw["template_aatype"]) if "template_aatype" in raw else 0
    sized = copy.deepcopy(data)
    with sized.unlocked():
        predict = sized.predict
        predict.max_msa_clusters = min(predict.max_msa_clusters, depth)
        predict.max_extra_msa = min(predict.max_extra_msa, max(depth - predict.max_msa_clusters, 1))
        # openfold fails on tensors without elements (a reshape), so one masked row stands for none
        predict.max_templates = min(predict.max_templates, max(templates, 1))
    # own settings here, whoever asks: a default dtype of the program would change the features
    with settled(), seeded(seed):  # openfold 2.x draws from the generators of Python as well
        return dict(FeaturePipeline(sized).process_features(dict(raw), mode="predict"))


def is_processed(features: Mapping[str, Any]) -> bool:
    """Return True for processed tensors, False for openfold's raw feature dict."""
    # made by the pipeline only; `aatype` and most other keys occur in both
    return "target_feat" in features


class Schema:
    """Dimensions of each feature: residues, MSA rows or templates.

    Parameters
    ----------
    data
        ``config.data``; its ``common.feat`` names the dimensions.
    """

    def __init__(self, data: Any) -> None:
        placeholders = {
            "num residues placeholder": "NUM_RES",
            "msa placeholder": "NUM_MSA_SEQ",
            "extra msa placeholder": "NUM_EXTRA_SEQ",
            "num templates placeholder": "NUM_TEMPLATES",
        }
        self._dims: dict[str, tuple[str | None, ...]] = {
            key: tuple(placeholders.get(str(dim)) for dim in dims)
            for key, dims in dict(data.common.feat).items()
        }
        for key, dims in EMPTY_FEATURES.items():
            self._dims.setdefault(key, dims)

    def crop(self, features: Features, max_length: int | None) -> Features:
        """Return the middle window of at most `max_length` residues of processed features."""
        length = features["aatype"].shape[0]
        if max_length is None or length <= max_length:
            return features
        start = (length - max_length) // 2
        cropped = {}
        for key, tensor in features.items():
            for dim, kind in enumerate(self._dims.get(key, ())):
                if kind == "NUM_RES":
                    tensor = tensor.narrow(dim, start, max_length)
            cropped[key] = tensor
        return cropped

    def collate(self, samples: Sequence[Features], keys: Sequence[str]) -> Features:
        """Pad the samples to common sizes and stack them: `keys`, and keys unknown to the schema.

        The latter are labels that an objective added.
        """
        recycles = {sample["aatype"].shape[-1] for sample in samples}
        if len(recycles) > 1:
            raise DataError(
                f"Samples of one batch have different numbers of recycling passes: "
                f"{sorted(r - 1 for r in recycles)}. Compute their features with one setting."
            )
        extra = [key for key in samples[0] if key not in self._dims and key not in keys]
        return {
            key: self._stack([sample[key] for sample in samples], key) for key in (*keys, *extra)
        }

    def _stack(self, tensors: Sequence[torch.Tensor], key: str) -> torch.Tensor:
        kinds = self._dims.get(key, ("any",) * tensors[0].ndim)
        # a dimension without a kind (channels, recycling passes) has one size for all samples
        fixed = [dim for dim in range(tensors[0].ndim) if not any(kinds[dim : dim + 1])]
        if any(len({tensor.shape[dim] for tensor in tensors}) > 1 for dim in fixed):
            raise DataError(f"Feature {key} has shapes that cannot be padded to one another.")
        return padded_cat([tensor.unsqueeze(0) for tensor in tensors])


def check_counts(
    recycling: int | None, max_msa_clusters: int | None, max_extra_msa: int | None
) -> None:
    """Refuse numbers of passes or of MSA rows that cannot be.

    Raises
    ------
    ConfigError
        If a number is too small.
    """
    if recycling is not None and recycling < 0:
        raise ConfigError(f"recycling must be 0 or more, got {recycling}.")
    for name, value in (("max_msa_clusters", max_msa_clusters), ("max_extra_msa", max_extra_msa)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
