"""Matrix products by the faster of torch's two float32 kernels on CPUs.

PyTorch sends float32 products on x86 to MKL, which is slow on AMD processors (pytorch/builder#504);
oneDNN, which PyTorch ships for other types, is up to twice as fast there at the same precision. It
is reached through a private operator of torch, so its results are compared with torch's once, and
it is not used where the operator is missing or wrong.

The choice depends on the maker of the processor and not on a timing of the two, which could turn
out differently in the next process: a resumed run has to give the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from molfun._shapes import Float
from molfun.errors import ConfigError
from molfun.strict import check_choice

logger = logging.getLogger(__name__)

TILE = 1024
"""Rows per tile: a tile passes through several products while it is in the processor's cache."""

MatrixKernel = Literal["auto", "torch", "onednn"]
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Classes of plain weights; those in int8 compute their own products."""
_choice: MatrixKernel = "auto"
_probed: bool | None = None
"""True if "auto" means oneDNN on this machine; None until the first product is computed."""
_batches: bool | None = None
"""True if oneDNN multiplies batches of matrices in full float32; None until that is tried."""


def set_matrix_kernel(kernel: MatrixKernel) -> None:
    """Choose what multiplies float32 matrices on the CPU, for the whole process.

    Parameters
    ----------
    kernel
        ``"auto"`` takes oneDNN's on AMD processors, if it gives the same numbers, and torch's
        usual one elsewhere; ``"torch"`` and ``"onednn"`` take that one.

    Raises
    ------
    ConfigError
        If the name is unknown, or oneDNN's product cannot be used here.
    """
    global _choice
    check_choice("matrix kernel", kernel, get_args(MatrixKernel))
    if kernel == "onednn" and not _agrees():
        raise ConfigError(
            f"matrix kernel 'onednn' cannot be used with torch {torch.__version__} on this "
            f"machine. Use 'auto' or 'torch'."
        )
    _choice = kernel


def matrix_kernel() -> Literal["torch", "onednn"]:
    """Return the name of the kernel that multiplies float32 matrices on the CPU."""
    global _probed
    if _choice != "auto":
        return _choice
    if _probed is None:
        _probed = _is_amd() and _agrees()
        logger.info("float32 products on the CPU: %s", "oneDNN" if _probed else "torch")
    return "onednn" if _probed else "torch"


@contextlib.contextmanager
def batches() -> Iterator[None]:
    """Send batched products of float32 matrices in the block to oneDNN.

    Torch has one way to it, the setting that allows bfloat16 within a product of float32. oneDNN
    does so on processors with AMX alone; see `multiplies_batches`. The setting is that of the
    process, and other threads see it.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its types
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def multiplies_batches() -> bool:
    """Return whether `batches` is faster here, and gives full float32."""
    global _batches
    if matrix_kernel() != "onednn":
        return False
    if _batches is None:
        _batches = _batches_agree()
    return _batches


def linear(
    x: Float[torch.Tensor, "tokens inner"],
    weight: Float[torch.Tensor, "outer inner"],
    bias: Float[torch.Tensor, "outer"] | None = None,
) -> Float[torch.Tensor, "tokens outer"]:
    """Compute ``x @ weight.T + bias``, as ``torch.nn.functional.linear``, by the chosen kernel.

    Examples
    --------
    >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    if not _fits(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and _any_grad(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def adapted_linear(
    x: Float[torch.Tensor, "tokens inner"],
    weight: Float[torch.Tensor, "outer inner"],
    bias: Float[torch.Tensor, "outer"] | None,
    down: Float[torch.Tensor, "rank inner"],
    up: Float[torch.Tensor, "outer rank"],
) -> Float[torch.Tensor, "tokens outer"]:
    """Compute ``x @ weight.T + bias + (x @ down.T) @ up.T``, a linear layer with a LoRA adapter.

    Forward and backward pass add the low-rank part in place, without the temporaries of four
    separate products. The adapter's ``alpha / rank`` is already multiplied into `up`.
    """
    if not _fits(x, weight):
        low_rank = functional.linear(functional.linear(x, down), up)
        return functional.linear(x, weight, bias) + low_rank
    return _AdaptedLinear.apply(x, weight, bias, down, up)


def channel_first_linear(
    x: Float[torch.Tensor, "tokens inner"],
    weight: Float[torch.Tensor, "outer inner"],
    bias: Float[torch.Tensor, "outer"],
) -> Float[torch.Tensor, "outer tokens"]:
    """Compute the transpose of `linear`: channels come first, without a transposing copy.

    Examples
    --------
    >>> channel_first_linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).shape
    torch.Size([4, 2])
    """
    if not _fits(x, weight) and x.dtype is not torch.bfloat16:
        return torch.addmm(bias.unsqueeze(1), weight, x.t())
    # (x W^T)^T = W x^T: the same product with its factors exchanged
    return linear(weight, x).add_(bias.unsqueeze(1))


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return True for what the private operator takes: float32 matrices that autocast leaves be."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in _PLAIN
        and x.ndim == 2
        and x.shape[0] > 0
        and not torch.is_autocast_enabled("cpu")
        and matrix_kernel() == "onednn"
    )


def _any_grad(*tensors: torch.Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute ``x @ weight.T + bias`` by oneDNN; both factors may be transposed views."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        # the input is needed for the weight's gradient alone: under LoRA most weights are frozen,
        # and their inputs are not kept
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(grad.t(), x.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any) -> Any:
        _, needs_weight, _, needs_down, _ = ctx.needs_input_grad
        result = x.new_empty(len(x), len(weight))
        inner = x.new_empty(len(x), len(down))
        for rows in _tiles(x):
            inner[rows] = _product(x[rows], down)
            result[rows] = _product(x[rows], weight, bias).addmm_(inner[rows], up.t())
        ctx.save_for_backward(x if needs_weight or needs_down else None, weight, down, up, inner)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, down, up, inner = ctx.saved_tensors
        grad = grad.contiguous()
        needs_x, needs_weight, needs_bias, needs_down, needs_up = ctx.needs_input_grad
        grad_x = grad.new_empty(len(grad), weight.shape[1]) if needs_x else None
        up_t = up.t().contiguous()
        grad_down, grad_up_t = _zeros_like(down, needs_down), _zeros_like(up_t, needs_up)
        # A tile stays in the cache for everything that is done with it. Products with one thin side
        # (the rank) are written so that the long side comes last, which is up to ten times faster.
        for rows in _tiles(grad):
            grad_inner = _product(grad[rows], up_t)
            if grad_x is not None:
                grad_x[rows] = _product(grad[rows], weight.t()).addmm_(grad_inner, down)
            if grad_down is not None:
                grad_down.addmm_(grad_inner.t(), x[rows])
            if grad_up_t is not None:
                grad_up_t.addmm_(inner[rows].t(), grad[rows])
        return (
            grad_x,
            _product(grad.t(), x.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            grad_down,
            None if grad_up_t is None else grad_up_t.t(),
        )


def _zeros_like(tensor: torch.Tensor, needed: bool) -> torch.Tensor | None:
    return torch.zeros_like(tensor) if needed else None


def _tiles(x: torch.Tensor) -> Iterator[slice]:
    return (slice(i, i + TILE) for i in range(0, len(x), TILE))


# --- choosing ------------------------------------------------------------------------------------


def _agrees() -> bool:
    """Return whether oneDNN's product is there and gives the same numbers, forward and backward."""
    # a generator of its own, so that the test draws nothing from the program's; sizes that are no
    # multiples of a vector register also test the remainders of the loops
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(n, generator=generator) for n in ((33, 48), (24, 48), (33, 24)))
    try:
        found = _product(x, weight), _product(grad, weight.t()), _product(grad.t(), x.t())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted = x @ weight.t(), grad @ weight, grad.t() @ x
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))


def _batches_agree() -> bool:
    """Return whether torch has the setting of `batches`, and its products are full float32."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 40, 24, generator=generator) for _ in range(2))
    try:
        with torch.no_grad(), batches():
            found = torch.bmm(a, b.transpose(1, 2)).double()
    except (AttributeError, RuntimeError):
        return False
    wanted = a.double() @ b.double().transpose(1, 2)
    return bool((found - wanted).norm() < 1e-6 * wanted.norm())


def _is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else platform.processor()
    return "AuthenticAMD" in text
