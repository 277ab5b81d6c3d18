"""Save a model as a checkpoint, check whether a checkpoint matches a model, and load it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from molfun.config import flattened
from molfun.errors import CheckpointError, ConfigError, MolfunError
from molfun.models import base_weights
from molfun.models.assembly import AssembledModel, use_precision
from molfun.models.training_record import TrainingRecord
from molfun.nn import int8, lora
from molfun.registry import BACKBONES
from molfun.runs import checkpoint as portable
from molfun.strategies.base import FinetuneStrategy
from molfun.text import listing
from molfun.training.task_head import TaskHead

Model = TypeVar("Model", bound=AssembledModel)

logger = logging.getLogger(__name__)

LORA = "lora"
"""Strategy whose frozen weights may be of another type than in training."""


def rebase(model: AssembledModel, weights: Path | None) -> None:
    """Make the trained weights, written to the file `weights`, the base of later checkpoints."""
    model.backbone.mark_trained()
    model.random_base = False
    model.weights = None if weights is None else base_weights.as_given(weights)
    model.note_base()


# --- save ----------------------------------------------------------------------------------------


def save(model: AssembledModel, folder: Path) -> None:
    """Write a checkpoint folder that suffices to predict.

    Raises
    ------
    RunError
        If the base weights of the model are in it.
    CheckpointError
        If the folder holds other files.
    """
    model.need_heads("save")
    base_weights.refuse_own(model.weights, [folder])
    backbone, record = model.backbone, model.training_record
    # merged adapters would be part of the backbone's weights, and no longer a separate adapter
    with lora.unmerged(backbone):
        adapted = lora.installed_spec(backbone) is not None
        portable.write_checkpoint(
            folder,
            _describe(model, folder),
            head={} if model.head is None else model.head.state_dict(),
            trunk=_trunk_to_save(model),
            save_adapter=(lambda place: lora.save_adapter(backbone, place)) if adapted else None,
            training_inputs=model.training_inputs,
            training_record=None if record is None else record.to_tensors(),
        )


def _describe(model: AssembledModel, folder: Path) -> portable.Meta:
    backbone = model.backbone
    return portable.Meta(
        backbone={
            "name": backbone.name,
            "config": backbone.config_dict,
            **base_weights.note(model.weights, folder),
            "fingerprint": model.base_fingerprint,
        },
        heads=[_describe_head(part) for part in model.heads],
        strategy=None if model.strategy is None else model.strategy.to_dict(),
        whole_trunk=model.weights is None,
        # drop undefined metrics: they are NaN, which JSON cannot express
        result={k: v for k, v in model.result.items() if v == v},
        data={
            **model.data_settings,
            "precision": model.precision,
            "random_base": model.random_base,
        },
    )


def _describe_head(part: TaskHead) -> portable.HeadMeta:
    head, task = part.head, part.task
    return portable.HeadMeta(
        head={"name": part.head_name, "config": dict(head.config_dict)},
        task={
            "name": part.task_name,
            "config": dict(task.config_dict),
            "state": task.state_dict(),
        },
        name=part.name,
        weight=part.weight,
    )


def _trunk_to_save(model: AssembledModel) -> dict[str, torch.Tensor]:
    """Return all weights if the base came from no file, else those that differ from the base."""
    if model.weights is None:
        # whole: with weights that are left out of fingerprints because they start at random
        return int8.floats(model.backbone.base_state_dict(whole=True))
    tensors, present = model.backbone.base_state_dict(), model.backbone.base_digests()
    return int8.floats(
        {n: t for n, t in tensors.items() if present[n] != model.base_digests.get(n)}
    )


# --- load ----------------------------------------------------------------------------------------


def load(model: AssembledModel, folder: Path, *, base: int8.Base | None = None) -> None:
    """Put the weights of a checkpoint into a model.

    With `base`, the frozen weights are of this type, whatever they were in training.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or made for another backbone, base, head or task.
    """
    meta = portable.read_meta(folder)
    # what the description asks for is bounded by the size of these files
    with portable.building(folder, None if model.weights is None else Path(model.weights)):
        _load(model, folder, meta, base)
    model.eval()


def _load(model: AssembledModel, folder: Path, meta: portable.Meta, base: int8.Base | None) -> None:
    _check_fits(model, folder, meta)
    trunk = portable.read_trunk(folder)
    _check_untrained(model, folder, trunk)
    if trunk:
        _load_trunk(model, folder / portable.TRUNK, trunk, whole=meta.whole_trunk)
    if (folder / portable.ADAPTER).is_dir():
        lora.load_adapter(model.backbone, folder / portable.ADAPTER)
    # after the adapters: `setup` injects none where equal ones are installed; it sets what trains
    # if training goes on
    if meta.strategy is not None:
        if int8.holds_int8(model.backbone):  # a model that was built so stays so
            base = "int8"
        _strategy_of(meta.strategy, base).setup(model)
    if model.head is not None:
        _load_exactly(model.head, portable.read_head(folder), folder / portable.HEAD)
    for part, described in zip(model.heads, meta.heads, strict=True):
        part.task.load_state_dict(described.task["state"])
    model.backbone.weights_changed()
    model.backbone.serve(model.heads)
    settings = dict(meta.data)
    use_precision(model, str(settings.pop("precision", "32-true")))
    model.random_base = bool(settings.pop("random_base", False))
    model.result, model.data_settings = dict(meta.result), settings
    model.training_inputs = portable.read_training_inputs(folder)
    model.training_record = TrainingRecord.from_tensors(portable.read_record(folder))


def _strategy_of(settings: Mapping[str, Any], base: int8.Base | None) -> FinetuneStrategy:
    """Return the strategy of a checkpoint, with another type of the frozen weights if one is given.

    Raises
    ------
    ConfigError
        If it trained these weights.
    """
    strategy = FinetuneStrategy.from_dict(settings)
    if base is None or (base == "int8") == strategy.quantises:
        return strategy
    inner = settings.get("inner")
    if isinstance(inner, Mapping) and inner.get("name") == LORA:
        return FinetuneStrategy.from_dict({**settings, "inner": {**inner, "base": base}})
    if settings["name"] != LORA:
        raise ConfigError(
            f"base={base!r} is for checkpoints of lora, and this is one of {strategy.name}. Leave "
            f"it out."
        )
    return FinetuneStrategy.from_dict({**settings, "base": base})


def _check_fits(model: AssembledModel, folder: Path, meta: portable.Meta) -> None:
    theirs, ours = _identity(meta), _identity(_describe(model, folder))
    if meta.whole_trunk:  # with the whole trunk in the checkpoint, any base will do
        del theirs["base weights"], ours["base weights"]
    differences = _differences(flattened(theirs), flattened(ours))
    if lora.is_merged(model.backbone):
        differences.append("the adapters of this model are merged: call unmerge() first")
    if differences:
        raise CheckpointError(
            f"{folder} does not fit this model:\n{listing(differences)}\nBuild the model as it "
            f"was trained (base weights: {meta.backbone['weights'] or 'none'}), or use "
            f"MolfunStructureModel.from_checkpoint."
        )


def _identity(meta: portable.Meta) -> dict[str, Any]:
    """Return what must be equal between a checkpoint and a model."""
    heads = {
        f"{one.name} {key}".strip(): value
        for one in meta.heads
        for key, value in (
            ("head", one.head["name"]),
            ("head config", one.head["config"]),
            ("task", one.task["name"]),
        )
    }
    backbone = meta.backbone
    return {
        "backbone": backbone["name"],
        "backbone config": backbone["config"],
        **heads,
        "base weights": backbone["fingerprint"],
    }


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {_short(theirs.get(key))} in it, {_short(ours.get(key))} in this model"
        for key in dict.fromkeys([*theirs, *ours])
        if theirs.get(key) != ours.get(key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}..."


def _check_untrained(
    model: AssembledModel, folder: Path, trunk: Mapping[str, torch.Tensor]
) -> None:
    """Refuse a model that was trained where the checkpoint holds no weights.

    A checkpoint leaves out what equals the base, so such weights of the model would stay as they
    are and be mixed with those of the checkpoint.
    """
    present = model.backbone.base_digests()
    kept = [n for n, d in present.items() if d != model.base_digests[n] and n not in trunk]
    adapters = lora.installed_spec(model.backbone) is not None
    left = [f"{len(kept)} weights of the backbone"] if kept else []
    if adapters and not (folder / portable.ADAPTER).is_dir():
        left.append("adapters")
    if left:
        raise CheckpointError(
            f"{folder} does not hold {' and '.join(left)} that were trained in this model, so "
            f"loading it would mix the two. Load it into a new model, or use "
            f"MolfunStructureModel.from_checkpoint."
        )


@torch.no_grad()
def _load_trunk(
    model: AssembledModel, path: Path, trunk: Mapping[str, torch.Tensor], *, whole: bool
) -> None:
    own = model.backbone.base_state_dict(whole=True)
    missing = sorted(own.keys() - trunk.keys()) if whole else []
    extra = sorted(trunk.keys() - own.keys())
    shapes = [n for n in trunk.keys() & own.keys() if trunk[n].shape != own[n].shape]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{path} does not fit the backbone: {len(missing)} weights "
            f"missing, {len(extra)} unexpected, {len(shapes)} of another shape "
            f"({[*missing, *extra, *shapes][:3]})."
        )
    for name, tensor in trunk.items():
        # in place: the optimizer, hooks and adapters hold these very tensors
        own[name].copy_(tensor)


def _load_exactly(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not fit the head: {' '.join(str(error).split())}"
        ) from error


# --- build and load ------------------------------------------------------------------------------


def from_checkpoint(
    cls: type[Model],
    folder: Path,
    *,
    weights: str | Path | None,
    base: int8.Base | None = None,
    **options: Any,
) -> Model:
    """Build the model that a checkpoint describes, on the first matching base weights, and load it.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or its base weights are not found.
    """
    meta = portable.read_meta(folder)
    if meta.whole_trunk and weights is not None:
        logger.warning("%s holds the whole backbone: %s is not read.", folder, weights)
    bases: list[Path | base_weights.Stored] = [base_weights.STORED]
    if not meta.whole_trunk:
        bases = [*base_weights.places(meta.backbone, folder, given=weights)]
    # known before the weights are read, so that they need not be held as floats
    options["base"] = _base_of(meta, base)
    # `load` compares the fingerprint, so a file with only the right name or size is passed over
    problems: list[MolfunError] = []
    for place in bases:
        try:
            model = _described(cls, folder, meta, place, **options)
            load(model, folder, base=base)
        except MolfunError as error:
            problems.append(error)
            continue
        noted = meta.backbone["weights"]
        if isinstance(place, Path) and weights is None and str(place) != noted:
            logger.warning(
                "The base weights of %s are no longer %s; the same ones were found as %s.",
                folder, noted, place,
            )  # fmt: skip
        _warn_of_random_base(model, folder)
        return model
    raise problems[0]  # about the path from training, which is the one a user knows


def _base_of(meta: portable.Meta, base: int8.Base | None) -> int8.Base:
    """Return the type of the frozen weights: the given one, or that of the training."""
    if meta.strategy is None:
        return "float32"
    return "int8" if _strategy_of(meta.strategy, base).quantises else "float32"


def _described(
    cls: type[Model],
    folder: Path,
    meta: portable.Meta,
    place: Path | base_weights.Stored,
    **options: Any,
) -> Model:
    """Build the model that a checkpoint describes on these base weights, without loading it."""
    with portable.building(folder, place if isinstance(place, Path) else None):
        backbone = BACKBONES[meta.backbone["name"]]
        return cls(
            meta.backbone["name"],
            weights=place,
            **_heads_of(meta),
            backbone_config=backbone.arguments_from(meta.backbone["config"]),
            **options,
        )


def _heads_of(meta: portable.Meta) -> dict[str, Any]:
    """Return the model's arguments that build the heads of a checkpoint."""
    described = {
        one.name: {
            "head": one.head["name"],
            "head_config": one.head["config"],
            "task": one.task["name"],
            "task_config": one.task["config"],
        }
        for one in meta.heads
    }
    only = described.get("")
    if only is not None:
        return only
    return {"heads": {one.name: described[one.name] | {"weight": one.weight} for one in meta.heads}}


def _warn_of_random_base(model: AssembledModel, folder: Path) -> None:
    frozen = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    if model.random_base and frozen:
        logger.warning(
            "%s was trained on a backbone without pretrained weights: %s of its weights are "
            "random.", folder, f"{frozen:,}",
        )  # fmt: skip
