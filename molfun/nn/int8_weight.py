"""An int8 matrix of torchao that stays int8 while a graph is kept; imported on first use."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from molfun._lazy import require, unlogged
from molfun.fingerprint import tensor_digests
from molfun.nn.kernels import linear

INSTALL = "pip install 'molfun[int8]'"
LARGEST = 127
"""Largest integer of a row; -128 is not used, so that rows are symmetric."""
_BITS = 16
"""Bits of the scale's mantissa: with the seven of an integer, float32 holds their product."""


def _torchao() -> tuple[Any, Any, Any]:
    with unlogged():
        stock = require("torchao.quantization", INSTALL)
        utils = require("torchao.utils", INSTALL)
    return stock.Int8Tensor, stock.PerRow, utils.TorchAOBaseTensor


_Int8Tensor, _PerRow, _Base = _torchao()


class Int8Weight(_Base):  # type: ignore[misc, valid-type]
    """Frozen weight of a linear layer: an integer per element, a scale per row.

    With row ``w`` and scale ``s``, the integers are ``q = round(w / s)`` with
    ``s = max |w| / 127``, rounded up to 16 bits. ``q s`` is then exact in float32 and gives the
    same ``q`` and ``s`` when it is quantised again, so that weights that were written as floats
    come back bit by bit.

    A linear layer holds the weight as floats during its own product, forward and backward, and no
    longer; torchao's own product would leave them to the graph until the backward pass is done.

    Parameters
    ----------
    qdata
        (outer, inner), int8.
    scale
        (outer, 1), float32.
    source
        The 32 bytes of the digest of the floats that were quantised
        (`molfun.fingerprint.tensor_digests`).
    """

    tensor_data_names = ["qdata", "scale", "source"]  # noqa: RUF012  (torchao copies it)
    tensor_attribute_names: list[str] = []  # noqa: RUF012

    def __new__(cls, qdata: torch.Tensor, *_rest: torch.Tensor) -> Int8Weight:  # noqa: D102
        made: Int8Weight = torch.Tensor._make_wrapper_subclass(
            cls, qdata.shape, dtype=torch.float32, device=qdata.device, requires_grad=False
        )
        return made

    def __init__(self, qdata: torch.Tensor, scale: torch.Tensor, source: torch.Tensor) -> None:
        self.qdata, self.scale, self.source = qdata, scale, source

    @classmethod
    @torch.no_grad()
    def of(cls, weight: torch.Tensor) -> Int8Weight:
        """Quantise a float matrix."""
        scale = _scale_of(weight)
        made = _Int8Tensor.from_hp(weight, _PerRow(), scale=scale)
        digest = bytes.fromhex(tensor_digests({"": weight})[""])
        source = torch.tensor(list(digest), dtype=torch.uint8, device=weight.device)
        return cls(made.qdata, scale, source)

    @classmethod
    def like(cls, weight: torch.Tensor) -> Int8Weight:
        """Return zeros in the shape and on the device of a matrix, to be copied into."""
        n, on = len(weight), weight.device
        return cls(
            torch.zeros(weight.shape, dtype=torch.int8, device=on),
            torch.ones(n, 1, device=on),
            torch.zeros(32, dtype=torch.uint8, device=on),
        )

    def dequantize(self) -> torch.Tensor:
        """Return the weight as floats."""
        return _floats(self.qdata, self.scale)

    def __repr__(self) -> str:
        return f"Int8Weight({tuple(self.shape)}, {self.device})"


def _scale_of(weight: torch.Tensor) -> torch.Tensor:
    """Return the scale of each row, (outer, 1)."""
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    # a row of zeros, or of numbers so small that 16 bits are not left, needs a scale as well
    mantissa, exponent = torch.frexp((largest / LARGEST).clamp(min=2.0**-100))
    return torch.ldexp(torch.ceil(torch.ldexp(mantissa, torch.tensor(_BITS))), exponent - _BITS)


def _floats(qdata: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return qdata.to(torch.float32).mul_(scale)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, qdata: Any, scale: Any, bias: Any) -> Any:
        ctx.save_for_backward(qdata, scale)
        ctx.x_dtype = x.dtype
        return linear(x, _floats(qdata, scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        qdata, scale = ctx.saved_tensors
        needs_x, _, _, needs_bias = ctx.needs_input_grad
        grad_x = linear(grad.contiguous(), _floats(qdata, scale).to(grad.dtype).t())
        return (
            grad_x.to(ctx.x_dtype) if needs_x else None,
            None,
            None,
            grad.sum(0) if needs_bias else None,
        )


@Int8Weight.implements_torch_function(functional.linear)
def _linear(_func: Any, _types: Any, args: Any, kwargs: Any) -> torch.Tensor:
    return _apply(*args, **kwargs)


def _apply(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    weight: Int8Weight,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    kind = input.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
    with torch.autocast(kind, enabled=False):
        x = input.reshape(-1, input.shape[-1]).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        result: torch.Tensor = _Linear.apply(x, weight.qdata, weight.scale, bias)
    return result.view(*input.shape[:-1], -1)


@Int8Weight.implements(torch.ops.aten.copy_.default)
def _copy(_func: Any, _types: Any, args: Any, _kwargs: Any) -> torch.Tensor:
    into, of = args[:2]
    if not isinstance(into, Int8Weight):
        copied: torch.Tensor = into.copy_(of.dequantize())
        return copied
    of = of if isinstance(of, Int8Weight) else Int8Weight.of(of.float())
    for name in Int8Weight.tensor_data_names:
        getattr(into, name).copy_(getattr(of, name))
    return into


@Int8Weight.implements(torch.ops.aten.equal.default)
def _equal(_func: Any, _types: Any, args: Any, _kwargs: Any) -> bool:
    one, other = args
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("qdata", "scale"))


@Int8Weight.implements([torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default])
def _draw(func: Any, _types: Any, args: Any, kwargs: Any) -> torch.Tensor:
    # transformers draws the weights of a model again when all of it is built
    into, *limits = args
    drawn: torch.Tensor = func(torch.empty(into.shape, device=into.device), *limits, **kwargs)
    return into.copy_(drawn)
