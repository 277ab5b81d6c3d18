"""Keep weights in a file that is mapped into memory, and read them when they are used.

The pages of such a file are no memory of the process: the system reads them when they are touched,
drops them when memory runs short, and processes that map the same file share them. A weight that
changes is copied page by page; the file stays as it is. So a model may be built that does not fit
into memory, before its blocks are divided among processes (`molfun.parallel.sharded`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from molfun._io import disk_errors
from molfun.nn import allocator
from molfun.nn.building import changed_as_built


def to_file(tensor: torch.Tensor) -> torch.Tensor:
    """Write a tensor to a temporary file, and return it as a map of that.

    The file lies in the folder for temporary files (``TMPDIR``), which should be on a disk. It has
    no name any more, and its space is free again when the tensor is gone.

    Raises
    ------
    RunError
        If the disk is full.

    Examples
    --------
    >>> weight = to_file(torch.tensor([[1.0, 2.0]]))
    >>> weight += 1  # in memory, not in the file
    >>> weight
    tensor([[2., 3.]])
    """
    plain = tensor.detach().cpu().contiguous()
    if not plain.numel():
        return plain
    content = plain.reshape(-1).view(torch.uint8).numpy().data
    with (
        disk_errors(Path(tempfile.gettempdir()) / "molfun-weights"),
        tempfile.NamedTemporaryFile(prefix="molfun-weights-") as file,
    ):
        file.write(content)
        file.flush()
        # not shared: what is changed is copied
        storage = torch.UntypedStorage.from_file(file.name, shared=False, nbytes=len(content))
    return torch.empty(0, dtype=plain.dtype).set_(storage).view(plain.shape)  # type: ignore[arg-type]  # a storage without type


def is_mapped(parameter: nn.Parameter) -> bool:
    """Return whether a weight is part of a file."""
    return hasattr(parameter, "_molfun_mapped") and parameter.device.type == "cpu"


def put_into(parameter: nn.Parameter, mapped: torch.Tensor) -> None:
    """Make a tensor that is part of a file the numbers of a weight."""
    parameter.data = mapped
    parameter._molfun_mapped = True  # type: ignore[attr-defined]  # a note


@contextlib.contextmanager
def built_mapped(block: type[nn.Module], *, random: bool) -> Iterator[None]:
    """Keep no weight of blocks of this class in memory while they are built.

    Parameters
    ----------
    block
        Class of the blocks.
    random
        Whether the numbers they start with are kept, in temporary files; else the weights have
        none until a file gives them theirs.
    """

    def change(part: nn.Module) -> None:
        for parameter in part.parameters():
            if parameter.device.type == "meta":
                return  # a model without numbers
            if random:
                put_into(parameter, to_file(parameter))
            else:
                parameter.data = torch.empty(1).expand(parameter.shape)

    with changed_as_built(block, change):
        yield
    allocator.trim()  # of what was in memory for a moment
