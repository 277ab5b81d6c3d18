"""Change the layers of blocks while a model is built, so that it is never held as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


@contextlib.contextmanager
def changed_as_built(block: type[nn.Module], change: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call `change` with each part of a block of this class as soon as the block has it.

    Random draws are taken in the usual order, so the numbers are those of a model that is built
    without this.
    """

    def hook(owner: nn.Module, _name: str, child: nn.Module | None) -> None:
        if child is not None and isinstance(owner, block):
            change(child)

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
