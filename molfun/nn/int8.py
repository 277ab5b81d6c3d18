"""Keep the frozen linear layers of a backbone's blocks in int8, a quarter of their memory.

Weights alone are quantised (`molfun.nn.int8_weight`); products, activations, adapters, heads, norms
and embeddings stay as they are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.nn.building import changed_as_built
from molfun.strict import check_choice

Base = Literal["float32", "int8"]
"""Type of the frozen weights of a backbone."""
BASES: tuple[str, ...] = get_args(Base)

Layers = list[tuple[nn.Linear, Any]]
"""Linear layers with weights that they had before."""


def check_base(base: str, backbone: Any) -> None:
    """Refuse an unknown type of weights, and int8 where a backbone cannot have it.

    Raises
    ------
    ConfigError
        If so.
    """
    check_choice("base", base, BASES)
    if base == "int8" and not backbone.has_int8:
        raise ConfigError(
            f"base='int8' is for protein language models and OpenFold, and this is "
            f"{backbone.display_name}. Leave it out."
        )


def is_int8(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is an `molfun.nn.int8_weight.Int8Weight`."""
    return hasattr(tensor, "qdata")


def floats(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors, those in int8 as floats."""
    return {n: t.dequantize() if is_int8(t) else t for n, t in tensors.items()}


def _int8_layers(backbone: nn.Module) -> list[nn.Linear]:
    return [m for m in backbone.modules() if isinstance(m, nn.Linear) and is_int8(m.weight)]


def holds_int8(backbone: nn.Module) -> bool:
    """Return whether any layer of a backbone is in int8."""
    return bool(_int8_layers(backbone))


def quantise(backbone: Any) -> None:
    """Put the linear layers in the blocks of a backbone into int8, one after the other."""
    inside = re.compile(rf"{re.escape(backbone.block_prefix)}\.\d+\..+")
    for name, module in backbone.named_modules():
        adapter = ".lora_" in name
        if isinstance(module, nn.Linear) and inside.fullmatch(name) and not adapter:
            _quantise(module)


def _quantise(layer: nn.Linear) -> None:
    # a model without numbers, which only shows what would train, has none to quantise
    if not is_int8(layer.weight) and layer.weight.device.type != "meta":
        from molfun.nn.int8_weight import Int8Weight

        layer.weight = nn.Parameter(Int8Weight.of(layer.weight.detach()), requires_grad=False)


@contextlib.contextmanager
def built_in_int8(block: type[nn.Module]) -> Iterator[None]:
    """Build the linear layers of blocks of this class in int8, as zeros that a file replaces.

    Random draws of the layers are taken as usual, and no two of them are held as floats.
    """
    from molfun.nn.int8_weight import Int8Weight

    def change(part: nn.Module) -> None:
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                layer.weight = nn.Parameter(Int8Weight.like(layer.weight), requires_grad=False)

    with changed_as_built(block, change):
        yield


@contextlib.contextmanager
def set_aside(backbone: nn.Module) -> Iterator[None]:
    """Put float weights without memory in place of those in int8, for code that asks for shapes."""
    layers: Layers = [(layer, layer.weight) for layer in _int8_layers(backbone)]
    for layer, weight in layers:
        shape = torch.empty(1, device=weight.device).expand(weight.shape)
        layer.weight = nn.Parameter(shape, requires_grad=False)
    try:
        yield
    finally:
        put_back(layers)


@torch.no_grad()
def to_float(backbone: nn.Module) -> Layers:
    """Replace int8 by the same numbers as floats, and return what `put_back` needs."""
    layers: Layers = [(layer, layer.weight) for layer in _int8_layers(backbone)]
    for layer, weight in layers:
        layer.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
    return layers


def put_back(layers: Layers) -> None:
    """Give layers the weights that they had before."""
    for layer, weight in layers:
        layer.weight = weight
