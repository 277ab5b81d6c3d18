"""Stop a checkpoint whose description of the model asks for far more memory than its files hold.

A few bytes of configuration can ask for a billion channels. The cap stops such a model while it is
built, before the machine runs out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from molfun._limits import Limit

MODEL_RATIO = Limit("MODEL_RATIO", 64, "bytes of memory per byte of its weights")
"""Limit on memory divided by file size. An ordinary model takes about four times its files: half
precision becomes float32, and random weights are drawn before those of the file are read."""
_FREE = 2**30
"""Bytes that any model may take, however small its files are."""
_SMALLEST = 4096
"""Bytes that every tensor counts for at least, so that a billion small ones are noticed."""
# functions that allocate by a size, which a checkpoint's configuration can choose
_MAKERS = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange,
    torch.eye, torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones,
    torch.Tensor.new_full,
}  # fmt: skip


class AllocationCap(TorchFunctionMode):
    """Context manager under which the tensors that are made may not exceed a limit together.

    Parameters
    ----------
    where
        Checkpoint that is being read, named in the error.
    files
        Files that hold the weights.

    Raises
    ------
    UnsafeFileError
        When the next tensor would exceed the limit; it is not allocated.
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
        """Add up the sizes of new tensors, before torch allocates them."""
        options = dict(kwargs or {})
        if func in _MAKERS:
            numbers = _numbers(func, args, options)
            # counted as float32, in which models are built whatever precision their files have
            self._taken += max(_SMALLEST, 4 * numbers)
            if self._taken > _FREE + MODEL_RATIO.value * self._stored:
                ratio = -(-self._taken // self._stored)
                raise MODEL_RATIO.error(
                    self._where, ratio, advice="It describes a model that its weights cannot fill."
                )
        return func(*args, **options)


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """Count the elements that the tensor will have."""
    sizes = _sizes(func, args, options)
    if func is torch.arange:
        return max(map(abs, sizes), default=0)
    if func is torch.eye and len(sizes) == 1:
        return sizes[0] ** 2
    return math.prod(map(abs, sizes)) if sizes else 1


def _sizes(
    func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
) -> list[int]:
    """Return the sizes of a call, given one by one, as a list, or by keyword."""
    # the first argument of a method such as `new_zeros` is the tensor itself
    rest = args[1:] if func.__name__.startswith("new_") else args
    size = options.get("size", rest[0] if rest and isinstance(rest[0], list | tuple) else rest)
    return [int(n) for n in size if isinstance(n, int | float) and math.isfinite(n)]


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return path.stat().st_size
    except OSError:
        return 0  # a missing file has an error of its own, raised by whoever reads it
