"""Low-rank adapters through Hugging Face ``peft``; the only module that imports it.

An adapted layer computes ``W x + scaling * B A x`` with ``A`` (rank, in), ``B`` (out, rank) and
``scaling = alpha / rank``. ``B`` starts at zero, so injection changes nothing.

References
----------
Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import load_safetensors, save_safetensors, write_json
from molfun._lazy import unlogged
from molfun._paths import as_path
from molfun.errors import CheckpointError, ConfigError, RunError
from molfun.nn import int8

logger = logging.getLogger(__name__)

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
SPEC_FILE = "molfun_spec.json"
"""File with the `LoRASpec`, next to peft's own: peft warns of keys it does not know in its file."""
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 4096
"""Largest rank that is read from a file, so that a damaged one cannot fill the memory."""


@dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Kind of the adapters to inject, and the layers that get them.

    Parameters
    ----------
    rank
        Inner dimension of the adapters.
    alpha
        Numerator of ``scaling = alpha / rank``.
    dropout
        Dropout on the adapter's input while training.
    target_modules
        Last parts of module names, matched whole: ``linear_q`` does not match ``linear_q_points``.
    scope
        Module path of the list of blocks in which to look for them.
    blocks
        Numbers of the blocks in which to look; None takes all.
    also
        Full names of layers outside of the blocks that get adapters as well.
    use_dora
        Weight-decomposed adapters (Liu et al. 2024).
    use_rslora
        ``scaling = alpha / sqrt(rank)`` (Kalajdzievski 2023).
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    scope: str
    use_dora: bool = False
    use_rslora: bool = False
    blocks: tuple[int, ...] | None = None
    also: tuple[str, ...] = ()
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (of the file, which is read strictly)

    @property
    def pattern(self) -> str:
        """Regular expression for the full names of the modules that get an adapter."""
        # peft matches a string as a regular expression against the full name, and a list only
        # against its end, which would also find layers outside of the blocks
        targets = "|".join(re.escape(t) for t in self.target_modules)
        blocks = r"\d+" if self.blocks is None else f"(?:{'|'.join(map(str, self.blocks))})"
        inside = rf"{re.escape(self.scope)}\.{blocks}\.(?:.*\.)?(?:{targets})"
        return "|".join([inside, *map(re.escape, self.also)]) if self.also else inside


def inject(backbone: nn.Module, spec: LoRASpec) -> None:
    """Put adapters into `backbone`, in place; its outputs stay the same.

    Raises
    ------
    ConfigError
        If a name in `target_modules` matches no linear layer; the text lists names that do.
    RunError
        If the backbone already has adapters of another kind.
    """
    present = installed_spec(backbone)
    if present is not None:
        if present != spec:
            raise RunError(
                f"The model already has adapters of another kind ({_differences(present, spec)}). "
                f"Use the same strategy to go on training them, or start from a new model."
            )
        logger.info("Adapters are in place already; training continues from their weights.")
        return
    _needs_targets(backbone, spec)
    _check_targets(backbone, spec)
    # peft imports torchao where it is installed, and has layers of its own for its weights, which
    # would merge by quantising once more
    with warnings.catch_warnings(), unlogged(), int8.set_aside(backbone):
        # peft warns that it cannot tell the base model's name, which is on no hub
        warnings.simplefilter("ignore")
        # imported only when it is needed: it is slow to load, and most models have no adapters
        from peft import inject_adapter_in_model

        inject_adapter_in_model(_peft_config(spec), backbone, adapter_name=ADAPTER)
    backbone.molfun_lora = spec  # type: ignore[assignment]  # a note on the module


def _peft_config(spec: LoRASpec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.pattern,
        use_dora=spec.use_dora,
        use_rslora=spec.use_rslora,
        bias="none",
    )


def _differences(present: LoRASpec, wanted: LoRASpec) -> str:
    old, new = asdict(present), asdict(wanted)
    return ", ".join(f"{k} {old[k]} there, {new[k]} asked for" for k in old if old[k] != new[k])


def _needs_targets(backbone: nn.Module, spec: LoRASpec) -> None:
    if not spec.target_modules:
        name = getattr(backbone, "display_name", type(backbone).__name__)
        raise ConfigError(
            f"{name} names no layers for LoRA (lora_targets). Name linear layers in {spec.scope} "
            f"with target_modules, or choose another strategy."
        )


def _check_targets(backbone: nn.Module, spec: LoRASpec) -> None:
    layers = _linear_layers(backbone, spec.scope)
    patterns = {t: replace(spec, target_modules=(t,)).pattern for t in spec.target_modules}
    unknown = [t for t, p in patterns.items() if not any(re.fullmatch(p, n) for n in layers)]
    if unknown:
        names = {name.rsplit(".", 1)[-1] for name in layers}
        wanted = [target.rsplit(".", 1)[-1] for target in unknown]
        near = sorted(set(chain(*(difflib.get_close_matches(w, names, n=2) for w in wanted))))
        raise ConfigError(
            f"target_modules {unknown} match no linear layer in {spec.scope}. "
            f"Linear layers there: {', '.join(sorted(names))}."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )


def _linear_layers(backbone: nn.Module, scope: str) -> list[str]:
    """Return the names of the linear layers in the blocks of `scope`."""
    inside = re.compile(rf"{re.escape(scope)}\.\d+\..+")
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and inside.fullmatch(name)
    ]


def installed_spec(backbone: nn.Module) -> LoRASpec | None:
    """Return the kind of adapters that `backbone` carries, None without any."""
    return getattr(backbone, "molfun_lora", None)


def parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the names and tensors of the adapter weights."""
    return ((n, p) for n, p in backbone.named_parameters() if is_adapter(n))


def is_adapter(name: str) -> bool:
    """Return True for the name of a parameter of an adapter.

    Examples
    --------
    >>> is_adapter("blocks.0.linear_q.lora_A.default.weight"), is_adapter("linear_q.weight")
    (True, False)
    """
    return ".lora_" in name


def _layers(backbone: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in backbone.modules() if isinstance(module, LoraLayer)]


@dataclass(frozen=True)
class LowRankParts:
    """A linear layer as ``weight x + bias + scaling * up down x``.

    Parameters
    ----------
    weight, bias
        The base layer, merged adapters included.
    down, up
        (rank, in) and (out, rank) of the adapter; None where there is none to add.
    scaling
        Factor of the adapter.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    scaling: float = 1.0


def low_rank_parts(module: nn.Module) -> LowRankParts | None:
    """Return the weights of a linear layer, so that a backbone can run several in one product.

    None where the layer does more than multiply and add: another kind of module, an adapter that
    normalises (DoRA) or has a bias, or an active dropout in front of the adapter.
    """
    if _is_plain(module):
        return LowRankParts(module.weight, module.bias)  # type: ignore[arg-type]  # its weight
    adapter: Any = module
    if not hasattr(adapter, "lora_A") or not _is_plain(adapter.base_layer):
        return None
    base = adapter.base_layer
    if adapter.merged or adapter.disable_adapters:
        return LowRankParts(base.weight, base.bias)
    if not _is_product(adapter):
        return None
    return LowRankParts(
        base.weight,
        base.bias,
        adapter.lora_A[ADAPTER].weight,
        adapter.lora_B[ADAPTER].weight,
        float(adapter.scaling[ADAPTER]),
    )


def _is_product(adapter: Any) -> bool:
    """Return True for an adapter that adds ``scaling * up down x`` and does nothing else."""
    dropout = adapter.lora_dropout[ADAPTER]
    drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    special = adapter.use_dora.get(ADAPTER) or adapter.lora_B[ADAPTER].bias is not None
    return not (drops or special) and list(adapter.active_adapters) == [ADAPTER]


def _is_plain(module: nn.Module) -> bool:
    """Return True for a module whose output is ``weight x + bias`` with a weight of floats.

    A subclass of `nn.Linear` that overrides ``forward`` says so by an attribute ``is_plain``.
    """
    if not isinstance(module, nn.Linear) or int8.is_int8(module.weight):
        return False
    return type(module).forward is nn.Linear.forward or getattr(type(module), "is_plain", False)


def is_merged(backbone: nn.Module) -> bool:
    """Return True while the adapters are folded into the base weights."""
    return bool(getattr(backbone, "_molfun_unmerged", None))


@torch.no_grad()
def merge(backbone: nn.Module) -> None:
    """Fold the adapters into the base weights; a copy of these makes `unmerge` exact.

    Weights in int8 become floats first, which hold the same numbers.
    """
    backbone._molfun_int8 = int8.to_float(backbone)  # type: ignore[assignment]  # a note
    # peft's own unmerge subtracts what merge added, which leaves rounding errors in the weights
    kept = []
    for layer in _layers(backbone):
        weight = layer.get_base_layer().weight
        kept.append((layer, weight.detach().clone()))
        layer.merge(safe_merge=True)
    backbone._molfun_unmerged = kept  # type: ignore[assignment]  # as above


@torch.no_grad()
def unmerge(backbone: nn.Module) -> None:
    """Take the adapters out of the base weights again, which get back their exact bits."""
    for layer, weight in backbone._molfun_unmerged:  # type: ignore[union-attr]  # as above
        layer.unmerge()
        layer.get_base_layer().weight.copy_(weight)
    backbone._molfun_unmerged = []  # type: ignore[assignment]  # as above
    int8.put_back(backbone._molfun_int8)  # type: ignore[arg-type]  # as above
    backbone._molfun_int8 = []  # type: ignore[assignment]  # as above


@contextlib.contextmanager
def unmerged(backbone: nn.Module) -> Iterator[None]:
    """Unmerge merged adapters within the block, and merge them again at its end."""
    if not is_merged(backbone):
        yield
        return
    unmerge(backbone)
    try:
        yield
    finally:
        merge(backbone)


@contextlib.contextmanager
def switched_off(backbone: nn.Module) -> Iterator[None]:
    """Leave the adapters out of all products within the block; without any it changes nothing."""
    if installed_spec(backbone) is None:
        yield
        return
    layers = [layer for layer in _layers(backbone) if not layer.disable_adapters]
    trained = [(p, p.requires_grad) for _, p in parameters(backbone)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter, trains in trained:  # peft turns them on and off with the adapters
            parameter.requires_grad_(trains)


def save_adapter(backbone: nn.Module, folder: str | Path) -> None:
    """Write the adapters in the PEFT format, readable by ``peft.PeftModel.from_pretrained``.

    The model to give to peft is the backbone, or its stock module if it has a `stock_prefix`.
    """
    spec = installed_spec(backbone)
    if spec is None:
        raise RunError("There are no adapters to save.")
    folder = as_path(folder)
    config = _peft_config(_of_stock(backbone, spec)).to_dict()
    # what JSON has no type for: sets, and peft's enumeration of methods
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    config["peft_type"] = str(getattr(config["peft_type"], "value", config["peft_type"]))
    config["inference_mode"] = True
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / SPEC_FILE, asdict(spec))
    save_safetensors(folder / WEIGHTS_FILE, _by_file_name(backbone), {"format": "pt"})


def _by_file_name(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter weights by their names in a PEFT folder."""
    prefix = getattr(backbone, "stock_prefix", "")
    return {
        PEFT_PREFIX + name.removeprefix(prefix).replace(f".{ADAPTER}", ""): parameter
        for name, parameter in parameters(backbone)
    }


def _of_stock(backbone: nn.Module, spec: LoRASpec) -> LoRASpec:
    """Return a spec with the names of modules in the stock model."""
    prefix = getattr(backbone, "stock_prefix", "")
    also = tuple(name.removeprefix(prefix) for name in spec.also)
    return replace(spec, scope=spec.scope.removeprefix(prefix), also=also)


def read_spec(folder: str | Path) -> LoRASpec:
    """Read the kind of adapters in a PEFT folder that `save_adapter` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or asks for an absurd rank.
    """
    from pydantic import TypeAdapter

    path = as_path(folder) / SPEC_FILE
    try:
        spec: LoRASpec = TypeAdapter(LoRASpec).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged: {' '.join(str(error).split())}"
        ) from error
    if not 1 <= spec.rank <= MAX_RANK:
        raise CheckpointError(f"{path} asks for rank {spec.rank}; allowed: 1 to {MAX_RANK}.")
    return spec


@torch.no_grad()
def load_adapter(backbone: nn.Module, folder: str | Path) -> None:
    """Load the adapters of a PEFT folder, injecting them first if the backbone has none.

    Raises
    ------
    CheckpointError
        If names or shapes do not match those of the backbone.
    """
    folder = as_path(folder)
    inject(backbone, read_spec(folder))
    tensors = load_safetensors(folder / WEIGHTS_FILE)
    own = _by_file_name(backbone)
    if own.keys() != tensors.keys():
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise CheckpointError(
            f"{folder} does not fit this model: {len(missing)} adapter weights missing "
            f"({missing[:2]}), {len(extra)} unexpected ({extra[:2]})."
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(tensors[name].shape)}, this model needs "
                f"{tuple(parameter.shape)}."
            )
        parameter.copy_(tensors[name])
