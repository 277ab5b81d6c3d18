"""Training and eval mode of modules: frozen parts stay in eval mode.

``module.train()`` would switch on dropout in frozen blocks and let frozen batch norms collect
statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def set_modes(module: nn.Module, *, training: bool, inherited: bool = False) -> None:
    """Put modules that train into training mode and frozen ones into eval mode.

    A module without parameters (dropout) follows the module that holds it: dropout is active in a
    block in which something trains, and in no frozen one.
    """
    parameters = list(module.parameters())
    active = any(p.requires_grad for p in parameters) if parameters else inherited
    module.training = training and active
    for child in module.children():
        set_modes(child, training=training, inherited=active)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode, and at the end each of their parts into the mode it had."""
    # a mode for each part: `train()` at the end would also wake the frozen ones
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
