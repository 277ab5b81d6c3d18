"""Compute several linear layers of one input as one matrix product.

One wide product runs closer to the processor's peak than several narrow ones, and reads the input
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from molfun._shapes import Float, Int64
from molfun.nn import bf16
from molfun.nn.kernels import adapted_linear, linear
from molfun.nn.lora import LowRankParts, low_rank_parts

_Part = tuple[LowRankParts, "torch.Tensor | None"]
"""A layer and the order of its outputs; None leaves the order as it is."""


def joint_linear(
    modules: Sequence[nn.Module],
    x: Float[torch.Tensor, "tokens inner"],
    rows: Sequence[Int64[torch.Tensor, "outer"] | None] | None = None,
) -> Float[torch.Tensor, "tokens all_outer"] | None:
    """Return the outputs of linear layers side by side, low-rank adapters included.

    Parameters
    ----------
    modules
        Linear layers with the same number of inputs, with or without adapters.
    x
        Their common input.
    rows
        Order of the outputs of each layer; None leaves the order as it is.

    Returns
    -------
    Tensor or None
        None if a layer does more than a product and an adapter: it then has to run by itself.

    Examples
    --------
    >>> joint_linear([nn.Linear(3, 2), nn.Linear(3, 4, bias=False)], torch.ones(5, 3)).shape
    torch.Size([5, 6])
    """
    parts = [low_rank_parts(module) for module in modules]
    if any(part is None for part in parts):
        return None
    orders = [None] * len(parts) if rows is None else list(rows)
    found = [(part, order) for part, order in zip(parts, orders, strict=True) if part is not None]
    cast = bf16.current()
    if cast is not None:
        return cast.linear(modules, x, lambda: _whole(found, x))
    # put together in every call: the weights may train, and copying them costs little beside the
    # product over all tokens
    weight = torch.cat([_take(part.weight, order) for part, order in found])
    bias = _joint_bias(found, x)
    down, up = _joint_adapters(found, len(weight))
    if not down:
        return linear(x, weight, bias)
    return adapted_linear(x, weight, bias, torch.cat(down), torch.cat(up, dim=1))


def _joint_bias(found: Sequence[_Part], x: torch.Tensor) -> torch.Tensor | None:
    """Return the biases side by side, zeros for a layer without one; None if no layer has one."""
    if all(part.bias is None for part, _ in found):
        return None
    return torch.cat(
        [
            x.new_zeros(len(part.weight)) if part.bias is None else _take(part.bias, order)
            for part, order in found
        ]
    )


def _joint_adapters(
    found: Sequence[_Part], outer: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return (rank, inner) and (`outer`, rank) of each adapter, zero in outputs of other layers.

    Side by side they are one adapter of all layers, whose rank is the sum of the ranks.
    """
    down, up = [], []
    before = 0
    for part, order in found:
        width = len(part.weight)
        if part.down is not None and part.up is not None:
            down.append(part.down)
            column = _take(part.up, order) * part.scaling
            up.append(functional.pad(column, (0, 0, before, outer - before - width)))
        before += width
    return down, up


def plain_linear(module: nn.Module, x: Float[torch.Tensor, "tokens inner"]) -> Any:
    """Run a linear layer and its adapter, if it has one, with the chosen matrix kernel."""
    part = low_rank_parts(module)
    if part is None:
        return module(x)
    cast = bf16.current()
    if cast is not None:
        return cast.linear([module], x, lambda: _whole([(part, None)], x))
    if part.down is None or part.up is None:
        return linear(x, part.weight, part.bias)
    return adapted_linear(x, part.weight, part.bias, part.down, part.up * part.scaling)


def gelu_linear(module: nn.Module, x: Float[torch.Tensor, "tokens inner"]) -> Any:
    """Run a linear layer as `plain_linear` does, and GELU on its output."""
    part, cast = low_rank_parts(module), bf16.current()
    if part is None or cast is None:
        return functional.gelu(plain_linear(module, x))
    return cast.linear([module], x, lambda: _whole([(part, None)], x), then="gelu")


def whole_weights(modules: Sequence[nn.Module]) -> bf16.Weights:
    """Return weight and bias of linear layers side by side, with their adapters folded in.

    The bias is None if no layer has one. The layers do no more than a product and an adapter.

    Examples
    --------
    >>> weight, bias = whole_weights([nn.Linear(3, 2), nn.Linear(3, 4, bias=False)])
    >>> weight.shape, bias.shape
    (torch.Size([6, 3]), torch.Size([6]))
    """
    parts = [part for module in modules if (part := low_rank_parts(module)) is not None]
    return _whole([(part, None) for part in parts], parts[0].weight)


def _whole(found: Sequence[_Part], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias of layers side by side, with their adapters added to the weights."""
    weights = [_take(_folded(part), order) for part, order in found]
    return torch.cat(weights), _joint_bias(found, x)


def _folded(part: LowRankParts) -> torch.Tensor:
    if part.down is None or part.up is None:
        return part.weight
    return torch.addmm(part.weight, part.up, part.down, alpha=part.scaling)


def _take(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return tensor if rows is None else tensor[rows]
