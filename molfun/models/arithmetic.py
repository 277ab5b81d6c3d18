"""Precision, kernels and summation order that a model computes with."""

from __future__ import annotations

import contextlib

import torch

from molfun.models.assembly import AssembledModel
from molfun.nn.kernels import matrix_kernel

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def use_precision(model: AssembledModel, precision: str) -> None:
    """Set the precision of the model for training, validation and prediction.

    A model that trained in bf16 and predicted in float32 would not reproduce its metrics.
    """
    model.precision = precision
    model.backbone.set_precision(precision)


def autocast(model: AssembledModel) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the model computes in its precision."""
    dtype = _HALF.get(model.precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def described(model: AssembledModel) -> str:
    """Describe kernels, device and matrix products, on which the last bits of results depend."""
    # on a CPU, torch's product and oneDNN's add up in different orders
    products = matrix_kernel() if model.device.type == "cpu" else "torch"
    return f"{model.backbone.kernels} on {model.device.type}, products by {products}"
