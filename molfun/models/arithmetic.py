"""The arithmetic a model computes with: precision, kernels and order of sums."""

from __future__ import annotations

import contextlib

import torch

from molfun.models.assembly import AssembledModel
from molfun.nn.kernels import matrix_kernel

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def use_precision(model: AssembledModel, precision: str) -> None:
    """Train, validate and predict in one precision, so that metrics are reproduced."""
    model.precision = precision
    model.backbone.set_precision(precision)


def autocast(model: AssembledModel) -> contextlib.AbstractContextManager[None]:
    """Context in which the model computes in its precision."""
    dtype = _HALF.get(model.precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def described(model: AssembledModel) -> str:
    """Name whose code computes, on which device and in which order of sums."""
    products = matrix_kernel() if model.device.type == "cpu" else "torch"
    return f"{model.backbone.kernels} on {model.device.type}, products by {products}"
