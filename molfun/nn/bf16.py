"""Products in bfloat16 on a CPU, for passes in which no weight changes.

Autocast casts each frozen weight again for every product. Within `cast_once` the blocks of a
language model run on weights that are cast once, with adapters folded into them; the sums are
float32, and so are the residual stream, norms and rotary embeddings, as under autocast.

docs/performance.md has the speed and the error; ``benchmarks/esm2_vs_cpp.py`` measures both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import torch

from molfun._shapes import Float

BF16 = torch.bfloat16
Weights = tuple[torch.Tensor, "torch.Tensor | None"]
"""Weight and bias of a product."""


@functools.cache
def units() -> Literal["amx", "avx512"] | None:
    """Return what this CPU multiplies bfloat16 with, or None.

    Without such units a product in bfloat16 takes up to ten times as long as one in float32.
    """
    capabilities: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    found = capabilities()  # of older versions of torch nothing is known
    if found.get("amx_bf16"):
        return "amx"
    return "avx512" if found.get("avx512_bf16") else None


class CastWeights:
    """Weights in bfloat16, each cast when it is first used."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Weights] = {}

    def linear(
        self,
        layers: Sequence[object],
        x: Float[torch.Tensor, "... inner"],
        whole: Callable[[], Weights],
        *,
        then: Literal["none", "gelu"] = "none",
    ) -> Float[torch.Tensor, "... outer"]:
        """Return ``x @ weight.T + bias`` in bfloat16.

        Parameters
        ----------
        layers
            What the weights are of: they are kept under these.
        x
            Input in any precision.
        whole
            Returns weight and bias in float32, adapters included.
        then
            ``"gelu"`` is applied to the float32 sums, before they are rounded.
        """
        key = tuple(map(id, layers))
        if key not in self._kept:
            with torch.autocast("cpu", enabled=False):
                weight, bias = whole()
                self._kept[key] = weight.to(BF16), None if bias is None else bias.to(BF16)
        weight, bias = self._kept[key]
        # the private operator that `molfun.nn.kernels` uses as well: torch has no public one that
        # applies a function to the sums
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(BF16), weight, bias, then, [], "none"
        )
        return found


_current: ContextVar[CastWeights | None] = ContextVar("weights in bfloat16", default=None)


def current() -> CastWeights | None:
    """Return the weights of the `cast_once` around this call; None outside, and for training."""
    return None if torch.is_grad_enabled() else _current.get()


@contextlib.contextmanager
def cast_once() -> Iterator[None]:
    """Keep weights in bfloat16 while the block runs, in which no weight may change.

    It is for passes without gradients on a CPU with `units`; those with gradients ignore it.
    """
    token = _current.set(CastWeights())
    try:
        yield
    finally:
        _current.reset(token)
