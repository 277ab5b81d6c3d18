"""Training and eval mode of modules: frozen parts stay in eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def set_modes(module: nn.Module, *, training: bool, inherited: bool = False) -> None:
    """Put what trains into training mode and what is frozen into eval mode.

    A module without parameters (dropout) follows the module that holds it: dropout is active in a
    block where something trains, and in no frozen one.
    """
    parameters = list(module.parameters())
    active = any(p.requires_grad for p in parameters) if parameters else inherited
    module.training = training and active
    for child in module.children():
        set_modes(child, training=training, inherited=active)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode; at the end each is in the mode it was in before."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
