"""The precision of single calls that compute without gradients, such as `embed`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from molfun.models.assembly import AssembledModel, autocast, use_precision
from molfun.nn import bf16
from molfun.strict import check_choice

InferencePrecision = Literal["auto", "fp32", "bf16"]
_FABRIC = {"fp32": "32-true", "bf16": "bf16-mixed"}


def inference_precision(
    model: AssembledModel, wanted: InferencePrecision | None
) -> Literal["fp32", "bf16"] | None:
    """Return the precision of a call: None is that of the model, in which it was trained.

    ``"auto"`` is bfloat16 where the device has units for it, and float32 elsewhere.

    Raises
    ------
    ConfigError
        If the name is unknown.

    Examples
    --------
    >>> from molfun import MolfunStructureModel
    >>> inference_precision(MolfunStructureModel("esm2_tiny", device="cpu"), "bf16")
    'bf16'
    """
    if wanted is None:
        return None
    check_choice("precision", wanted, get_args(InferencePrecision))
    if wanted != "auto":
        return wanted
    if model.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if model.device.type == "cpu" and bf16.units() else "fp32"


@contextlib.contextmanager
def computing(model: AssembledModel, wanted: InferencePrecision | None = None) -> Iterator[None]:
    """Run the block with the model in a precision. No weight may change in the block.

    In bfloat16 on a CPU that has units for it, each weight is cast once.

    Raises
    ------
    ConfigError
        If the name is unknown.

    Examples
    --------
    >>> from molfun import MolfunStructureModel
    >>> model = MolfunStructureModel("esm2_tiny", device="cpu")
    >>> with computing(model, "bf16"):
    ...     model.precision
    'bf16-mixed'
    >>> model.precision
    '32-true'
    """
    chosen, before = inference_precision(model, wanted), model.precision
    with contextlib.ExitStack() as stack:
        if chosen is not None and _FABRIC[chosen] != before:
            use_precision(model, _FABRIC[chosen])
            stack.callback(use_precision, model, before)
        stack.enter_context(autocast(model))
        if bf16.units():
            stack.enter_context(bf16.cast_once())
        yield
