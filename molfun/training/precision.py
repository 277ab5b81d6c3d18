"""Choose the precision to train in, by Fabric's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from molfun.errors import ConfigError
from molfun.text import unknown_name

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {
    **dict.fromkeys(("32-true", "32", "fp32", "float32"), "32-true"),
    **dict.fromkeys(("bf16-mixed", "bf16", "bfloat16"), "bf16-mixed"),
    **dict.fromkeys(("16-mixed", "16", "fp16", "float16"), "16-mixed"),
}
"""Accepted names of a precision, with Fabric's name for each."""


def choose_precision(device: torch.device, *, amp: bool, precision: str | None) -> str:
    """Return Fabric's name of the precision to train in.

    ``amp`` picks bfloat16 on GPUs that have it, float16 with a loss scaler on older ones, and
    float32 on a CPU; `precision` overrides it.

    Examples
    --------
    >>> choose_precision(torch.device("cpu"), amp=True, precision=None)
    '32-true'
    >>> choose_precision(torch.device("cpu"), amp=True, precision="bf16")
    'bf16-mixed'
    """
    if precision is not None:
        precision = PRECISIONS.get(precision, precision)
        if precision not in PRECISIONS.values():
            raise ConfigError(unknown_name("precision", precision, PRECISIONS))
        return precision
    if not amp or device.type != "cuda":
        return "32-true"
    # bfloat16 has the range of float32, so it needs no loss scaling
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def make_fabric(device: torch.device, precision: str) -> Fabric:
    """Return a Fabric for one device; several processes are joined by `Ranks` instead."""
    from lightning_fabric import Fabric  # here, as the import takes seconds

    # one device per process: `Ranks` joins the processes
    devices: Any = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=precision)
