"""Products in bfloat16 on a CPU, for passes in which no weight changes.

Autocast casts each frozen weight again for every product. Within `cast_once` the blocks of a
language model run on weights that are cast once, with adapters folded into them; the sums are
float32, and so are the residual stream, norms and rotary embeddings, as under autocast.

docs/performance.md has the speed and the error; ``benchmarks/esm2_vs_cpp.py`` measures both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import torch

from molfun._shapes import Float

T = TypeVar("T")

BF16 = torch.bfloat16
Weights = tuple[torch.Tensor, "torch.Tensor | None"]
"""Weight and bias of a product."""


@functools.cache
def units() -> Literal["amx", "avx512"] | None:
    """Return what this CPU multiplies bfloat16 with, or None.

    Without such units a product in bfloat16 takes up to ten times as long as one in float32. None
    as well where torch has no `product`, or it gives other numbers.
    """
    capabilities: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    found = capabilities()  # of older versions of torch nothing is known
    if not (found.get("amx_bf16") or found.get("avx512_bf16")) or not _agrees():
        return None
    return "amx" if found.get("amx_bf16") else "avx512"


def _agrees() -> bool:
    """Return whether `product` is there and near the same in float32."""
    generator = torch.Generator().manual_seed(0)  # nothing is drawn from the program's
    x, weight = (torch.randn(n, 48, generator=generator).to(BF16) for n in (33, 24))
    bias = torch.randn(24, generator=generator).to(BF16)
    try:
        with torch.no_grad():
            found = product(x, weight, bias, then="relu").float()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted = (x.float() @ weight.float().t() + bias.float()).relu()
    return bool((found - wanted).norm() < 1e-2 * wanted.norm())


def is_chosen() -> bool:
    """Return whether autocast asks for bfloat16 on a CPU."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is BF16


class CastWeights:
    """Weights in bfloat16, each cast when it is first used."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned for this key; a key that has an id names what lives on."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def linear(
        self,
        layers: Sequence[object],
        x: Float[torch.Tensor, "... inner"],
        whole: Callable[[], Weights],
        *,
        then: Literal["none", "gelu", "relu"] = "none",
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
            Function that is applied to the float32 sums, before they are rounded.
        """

        def cast() -> Weights:
            with torch.autocast("cpu", enabled=False):
                weight, bias = whole()
                return weight.to(BF16), None if bias is None else bias.to(BF16)

        weight, bias = self.kept(tuple(map(id, layers)), cast)
        return product(x.to(BF16), weight, bias, then=then)


def product(
    x: Float[torch.Tensor, "... inner"],
    weight: Float[torch.Tensor, "outer inner"],
    bias: Float[torch.Tensor, "outer"] | None = None,
    *,
    then: Literal["none", "gelu", "relu"] = "none",
) -> Float[torch.Tensor, "... outer"]:
    """Return ``x @ weight.T + bias`` of tensors in bfloat16, and a function of the float32 sums."""
    # the private operator that `molfun.nn.kernels` uses as well: torch has no public one that
    # applies a function to the sums
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return found


_current: ContextVar[CastWeights | None] = ContextVar("weights in bfloat16", default=None)


def current() -> CastWeights | None:
    """Return the weights of the `cast_once` around this call; None for training and in float32."""
    return None if torch.is_grad_enabled() or not is_chosen() else _current.get()


@contextlib.contextmanager
def cast_once() -> Iterator[None]:
    """Keep weights in bfloat16 while the block runs, in which no weight may change.

    Passes under autocast to bfloat16 and without gradients use them, and others ignore it. It pays
    on a CPU with `units`.
    """
    token = _current.set(CastWeights())
    try:
        yield
    finally:
        _current.reset(token)
