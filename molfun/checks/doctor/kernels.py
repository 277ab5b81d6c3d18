"""Self-test of the matrix products against torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding

TOLERANCE = 1e-5
"""Largest relative difference to float64; right float32 products differ by less than 1e-6."""


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Compare Molfun's products with those of torch in float64, forward and backward."""
    from molfun.nn.kernels import matrix_kernel

    kernel, errors = matrix_kernel(), differences()
    worst = max(errors.values())
    right = worst <= TOLERANCE  # false for NaN
    yield Finding(
        status="OK" if right else "FAILED",
        topic="matrix kernel",
        text=f"{kernel}; differs from float64 by {worst:.1e} at most (allowed: {TOLERANCE:.0e})",
        remedy="" if right else "Report it, and use molfun.nn.kernels.set_matrix_kernel('torch').",
        facts={"kernel": kernel, **errors},
    )


def differences() -> dict[str, float]:
    """Return the largest relative difference of each product to torch's in float64."""
    import torch
    from torch.nn import functional

    from molfun.nn import kernels

    # sizes that are no multiples of a vector register also test the remainders of loops
    drawn = torch.Generator().manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(size, generator=drawn)
        for size in ((1037, 67), (45, 67), (45,), (5, 67), (45, 5))
    )

    def adapted(x: Any, weight: Any, bias: Any, down: Any, up: Any) -> Any:
        low_rank = functional.linear(functional.linear(x, down), up)
        return functional.linear(x, weight, bias) + low_rank

    def transposed(x: Any, weight: Any, bias: Any) -> Any:
        return functional.linear(x, weight, bias).t()

    products = {
        "linear": (kernels.linear, functional.linear, (x, weight, bias)),
        "adapted_linear": (kernels.adapted_linear, adapted, (x, weight, bias, down, up)),
        "channel_first_linear": (kernels.channel_first_linear, transposed, (x, weight, bias)),
    }
    return {name: _difference(*product) for name, product in products.items()}


def _difference(ours: Any, wanted: Any, tensors: Any) -> float:
    """Return the relative difference of outputs and gradients."""
    found, exact = _outputs(ours, tensors), _outputs(wanted, [t.double() for t in tensors])
    pairs = zip(found, exact, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _outputs(function: Any, tensors: Any) -> list[Any]:
    import torch

    inputs = [t.clone().requires_grad_() for t in tensors]
    with torch.enable_grad():
        result = function(*inputs)
        grads = torch.autograd.grad(result.square().sum(), inputs)
    return [result.detach(), *grads]
