"""Stop a description of a model that asks for far more memory than its files explain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from molfun._limits import Limit

MODEL_RATIO = Limit("MODEL_RATIO", 64, "bytes of memory per byte of its weights")
"""An honest model takes about four times its files: half precision on disk, drawn, then read."""
_FREE = 2**30
"""Bytes that any model may take."""
_SMALLEST = 4096
"""Bytes that every tensor counts for, so that a billion small ones are noticed."""
_MAKERS = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange,
    torch.eye, torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones,
    torch.Tensor.new_full,
}  # fmt: skip


class AllocationCap(TorchFunctionMode):
    """While entered, tensors may be made until they take too much memory together.

    Parameters
    ----------
    where
        What is read, for the error.
    files
        Files that hold the weights.

    Raises
    ------
    UnsafeFileError
        When a tensor is asked for that goes beyond; it is not made.
    """

    def __init__(self, where: Path, files: Iterable[Path]) -> None:
        super().__init__()
        self._where = where
        self._stored = max(1, sum(_size(path) for path in files))
        self._taken = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what makes a tensor."""
        options = dict(kwargs or {})
        if func in _MAKERS:
            numbers = _numbers(func, args, options)
            self._taken += max(_SMALLEST, 4 * numbers)
            if self._taken > _FREE + MODEL_RATIO.value * self._stored:
                ratio = -(-self._taken // self._stored)
                raise MODEL_RATIO.error(
                    self._where, ratio, advice="It describes a model that its weights cannot fill."
                )
        return func(*args, **options)


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """Count the numbers that the tensor will have."""
    sizes = _sizes(func, args, options)
    if func is torch.arange:
        return max(map(abs, sizes), default=0)
    if func is torch.eye and len(sizes) == 1:
        return sizes[0] ** 2
    return math.prod(map(abs, sizes)) if sizes else 1


def _sizes(
    func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
) -> list[int]:
    """Sizes asked for: one by one, as a list, or by keyword."""
    rest = args[1:] if func.__name__.startswith("new_") else args
    size = options.get("size", rest[0] if rest and isinstance(rest[0], list | tuple) else rest)
    return [int(n) for n in size if isinstance(n, int | float) and math.isfinite(n)]


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return path.stat().st_size
    except OSError:
        return 0
