"""Predict structures: of sequences, samples or a data set, one after the other."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molfun._io import sha256_of
from molfun.backbones.folding import Fold, Folding
from molfun.errors import ConfigError, DataError
from molfun.models import evaluation, fold_memory
from molfun.models.assembly import AssembledModel
from molfun.models.loaders import (
    all_samples,
    as_loader,
    column_of,
    refuse_nothing,
    share_of,
)
from molfun.models.precision import InferencePrecision, computing
from molfun.nn.modes import evaluating
from molfun.nn.process import settled
from molfun.protein import UNKNOWN_RESIDUE, Protein
from molfun.runs import noted
from molfun.sample import Sample
from molfun.structures import files
from molfun.structures.folded import RANDOM, TRAINED_HERE, FoldedStructure, Maker, caveats
from molfun.structures.ranking import ranked
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.supervised import Evaluation
from molfun.trunk import TrunkOutput


def fold(
    models: Sequence[AssembledModel],
    data: Any,
    *,
    recycles: int,
    tolerance: float | None = None,
    seed: int = 0,
    precision: InferencePrecision | None = None,
) -> list[FoldedStructure]:
    """Return the predicted structure of every sample; see `folded`.

    Raises
    ------
    DataError
        If a sample cannot be folded, takes more memory than is free, or has coordinates that are
        not finite.
    """
    samples = samples_to_fold(data)
    _folding(models[0])  # said first: to other backbones these are no samples at all
    models[0].check(samples)
    too_large = fold_memory.too_large(models[0], samples)
    if too_large:
        raise DataError("\n".join(too_large.values()))
    found = list(folded(models, samples, recycles, tolerance, seed, precision))
    broken = [text for one in found if (text := why_unusable(one))]
    if broken:
        raise DataError("\n".join(broken))
    return found


def samples_to_fold(data: Any) -> list[Sample]:
    """Return samples with proteins, from sequences, samples or a data set.

    Raises
    ------
    DataError
        If there is none, or a sequence is none.
    """
    samples = [_with_protein(sample) for sample in all_samples(data)]
    refuse_nothing(samples)
    without = [text for sample in samples if (text := _without_atoms(sample))]
    if without:
        raise DataError("\n".join(without))
    return samples


def _without_atoms(sample: Sample) -> str:
    """Say which chains of a sample would have no atoms; an empty text if none."""
    protein = sample.protein
    if protein is None:
        return ""
    known = np.unique(protein.chain_index[protein.aatype != UNKNOWN_RESIDUE])
    unknown = [name for i, name in enumerate(protein.chain_ids) if i not in known]
    if not unknown:
        return ""
    what = "chain" if len(unknown) == 1 else "chains"
    return (
        f"{sample.shown}: {what} {', '.join(unknown)} of unknown residues (X) alone, for which no "
        f"atoms are predicted. Leave the {what} out."
    )


def folded(
    models: Sequence[AssembledModel],
    samples: Sequence[Sample],
    recycles: int,
    tolerance: float | None,
    seed: int,
    precision: InferencePrecision | None = None,
) -> Iterator[FoldedStructure]:
    """Yield structures one by one, so that a caller can write each before the next is computed.

    Parameters
    ----------
    models
        One model, or those of an ensemble, of which the most confident structure is given.
    samples
        Samples that the caller has had the model check.
    recycles, tolerance, seed, precision
        As in `MolfunStructureModel.fold`.

    Raises
    ------
    ConfigError
        If the backbone predicts no structures, or an argument is out of range.
    """
    check_settings(models, recycles, tolerance)
    parts = {
        number: (models[number - 1], _folding(models[number - 1]), maker_of(models[number - 1]))
        for number in _distinct(models)
    }
    for sample in samples:
        found = {}
        for number, (model, backbone, maker) in parts.items():
            # for each sample: between two, the program that iterates has its own settings
            with settled(), torch.no_grad(), evaluating(model), computing(model, precision):
                made = backbone.fold(sample, recycles=recycles, tolerance=tolerance, seed=seed)
            found[number] = structure_of(sample, made, maker, seed)
        broken = [replace(one, member=n) for n, one in found.items() if not one.is_finite]
        if broken and len(models) > 1:
            yield broken[0]  # what is not finite has no place in an order
        else:
            yield found[1] if len(models) == 1 else ranked(found, of=len(models))


def why_unusable(structure: FoldedStructure) -> str:
    """Say that a predicted structure is not made of numbers; an empty text if it is."""
    if structure.is_finite:
        return ""
    whose = "" if structure.member is None else f" (model {structure.member} of the ensemble)"
    return (
        f"{structure.id}: the predicted coordinates or their confidence are not finite{whose}. "
        f"Look at the weights, and fold in float32."
    )


def _distinct(models: Sequence[AssembledModel]) -> list[int]:
    """Return the numbers, from 1, of the models whose backbones differ: equal ones fold alike."""
    if len(models) == 1:
        return [1]
    prints = [model.backbone.state_fingerprint() for model in models]
    return sorted({one: prints.index(one) + 1 for one in prints}.values())


def predicted(model: AssembledModel, data: Any, folder: Path) -> Evaluation:
    """Predict with the heads, and write the structures that the same pass gives.

    The numbers of recycling passes and the seed of the features are those of the model, so that
    a prediction and its structure belong together.

    Raises
    ------
    ConfigError
        If the backbone predicts no structures.
    DataError
        If the data is not made of samples, or two of them would have files of one name: before
        the first prediction if the ids are known by then.
    """
    model.need_heads("predict with structures")
    backbone, maker = _folding(model), maker_of(model)
    loader = as_loader(data)
    names = _ids(loader)
    files.check_names(names)
    taken: dict[str, str] = {}

    def write(inputs: Inputs, trunk: TrunkOutput) -> None:
        if not inputs.samples:
            raise DataError("structures=... needs samples, and this is a dict of tensors.")
        # before the first structure, so that one that is killed is known; later ids as they come
        if not names or not (taken or share):
            noted.add(folder, names or inputs.ids)
        for row, sample in enumerate(inputs.samples):
            stem = files.file_stem(sample.id).lower()
            if stem in taken:
                raise DataError(
                    f"{taken[stem]!r} and {sample.id!r} would both be {stem}.cif: give each "
                    f"structure a name of its own."
                )
            taken[stem] = sample.id
            found = backbone.fold_of(trunk.structure, row, sample)
            files.write_structure(structure_of(sample, found, maker, None), folder)

    share = share_of(loader)
    if share is not None:
        # before any structure: the note is of all, and what has files by then is of the user
        share.ranks.of_first(lambda: noted.add(folder, names))
    result = evaluation.predicted(model, loader, write)
    if share is None or share.ranks.is_first:
        rows = [files.read_row(folder, name) for name in result.ids]
        files.write_summary(rows, folder / files.SUMMARY)
    return result


def _ids(loader: Any) -> list[str]:
    """Return the ids of all samples; none for a loader over a data set that does not list them."""
    ids = column_of(getattr(loader, "dataset", None), "ids")
    if ids is None and isinstance(loader, list):
        return [name for batch in loader for name in as_inputs(batch).ids]
    return list(map(str, ids or []))


def structure_of(sample: Sample, found: Fold, maker: Maker, seed: int | None) -> FoldedStructure:
    """Return what a backbone predicted with all that a user's file says of it."""
    return FoldedStructure(
        id=sample.id,
        protein=found.protein,
        plddt=found.plddt,
        pae=found.pae,
        max_pae=found.max_pae,
        ptm=found.ptm,
        iptm=found.iptm,
        recycles=found.recycles,
        seed=seed,
        notes=tuple(_notes(found, maker)),
        maker=maker,
    )


def _folding(model: AssembledModel) -> Any:
    if not isinstance(model.backbone, Folding):
        raise ConfigError(
            f"{model.backbone.display_name} predicts no structures; openfold does: "
            f'MolfunStructureModel("openfold", weights=...).'
        )
    return model.backbone


def check_settings(
    models: Sequence[AssembledModel], recycles: int, tolerance: float | None
) -> None:
    """Refuse models that predict no structures, and arguments that are out of range.

    Raises
    ------
    ConfigError
        In one line.
    """
    _folding(models[0])
    if isinstance(recycles, bool) or not isinstance(recycles, int) or recycles < 0:
        raise ConfigError(f"recycles must be a whole number from 0 on, got {recycles!r}.")
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(
            f"The tolerance of recycling is a distance in angstrom above 0, got {tolerance}."
        )


def _with_protein(sample: Sample) -> Sample:
    if sample.sequence is None:
        return sample
    chains = [chain.strip() for chain in sample.chains]
    if not all(chains):
        raise DataError(f"{sample.shown} has an empty chain: {sample.sequence!r}.")
    for chain in chains:
        wrong = sorted({c for c in chain.upper() if not c.isalpha() or c in "JO"})
        if wrong:
            letters = " ".join(map(repr, wrong))
            raise DataError(
                f"{sample.shown} holds {letters}, which stands for no amino acid. Leave it out, or "
                f"write X for a residue that is not known."
            )
    protein = Protein.from_chains(chains, name=sample.id).crop(sample.max_length)
    return replace(sample, sequence=None, protein=protein)


def _notes(found: Fold, maker: Maker) -> Iterator[str]:
    yield from caveats(found.protein, maker, alone=found.alignment_rows < 2)
    if found.ptm is None:
        yield "the preset has no TM head, so there is no pTM and no predicted aligned error"


def maker_of(model: AssembledModel) -> Maker:
    """Return software and weights of a model."""
    backbone = model.backbone
    preset = getattr(backbone, "preset", None)
    return Maker(
        model=f"{backbone.display_name} {preset}" if preset else backbone.display_name,
        software=_versions(backbone.name),
        weights=_weights_of(model),
        weights_sha256="" if model.weights is None else _sha256(model.weights, _state(model)),
        trained=_trained(model),
        fingerprint=backbone.state_fingerprint(),
    )


def maker_of_all(models: Sequence[AssembledModel]) -> Maker:
    """Return software and weights of models of which each sample has the most confident one."""
    maker = maker_of(models[0])
    if len(models) == 1:
        return maker
    trained = f"{maker.trained}, the most confident of {len(models)} models"
    return replace(maker, trained=trained.removeprefix(", "))


def _versions(package: str) -> dict[str, str]:
    """Return the versions of the wrapped package and of Molfun; a package may be renamed."""
    found: dict[str, str] = {}
    for name in (package, "molfun"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _weights_of(model: AssembledModel) -> str:
    if model.weights is not None:
        return Path(model.weights).name
    if model.random_base:
        kept = model.strategy is None or model.strategy.name == "head_only"
        return RANDOM if kept else TRAINED_HERE
    return "in the checkpoint"


def _state(model: AssembledModel) -> tuple[int, int]:
    """Return size and time of the file of weights, by which its checksum is kept."""
    status = Path(str(model.weights)).stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _sha256(weights: str, _state: tuple[int, int]) -> str:
    return sha256_of(weights)


def _trained(model: AssembledModel) -> str:
    """Say in a few words what fine-tuning changed in the trunk."""
    if model.strategy is None:
        return ""
    return f"fine-tuned ({model.strategy.name})"
