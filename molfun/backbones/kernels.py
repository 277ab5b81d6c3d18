"""Ability of a backbone to run faster code with the same results up to rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.strict import check_choice

Kernels = Literal["auto", "stock", "fast"]
"""Implementation: that of the backbone's package, or Molfun's faster one with the same results."""
KERNELS_SWITCH = "MOLFUN_KERNELS"
"""Environment variable that decides what ``"auto"`` means: ``stock`` or ``fast``."""


class KernelChoice(ABC):
    """Mix-in for a `Backbone` with both implementations; its ``kernels`` is the one that runs."""

    @abstractmethod
    def set_kernels(self, kernels: Kernels) -> None:
        """Switch to an implementation; weights and their names do not change.

        Parameters
        ----------
        kernels
            ``"stock"`` is the package's own, ``"fast"`` is Molfun's, ``"auto"`` takes Molfun's if
            it gives the same numbers on this machine.

        Raises
        ------
        ConfigError
            If the name is unknown, or ``"fast"`` gives other numbers on this machine.
        """


def check_kernels(kernels: str) -> None:
    """Refuse an unknown name.

    Raises
    ------
    ConfigError
        If the name is unknown; the text has the nearest known one.
    """
    check_choice("kernels", kernels, get_args(Kernels))


def choose_kernels(backbone: Backbone, kernels: Kernels) -> None:
    """Switch a backbone to `kernels` if it has a choice; see `KernelChoice.set_kernels`.

    Raises
    ------
    ConfigError
        If the name is unknown, the backbone has no such implementation, or it gives other numbers
        on this machine.
    """
    check_kernels(kernels)
    # "auto" suits every backbone; a backbone whose only code is "fast" also accepts that name
    if isinstance(backbone, KernelChoice):
        backbone.set_kernels(kernels)
    elif kernels not in ("auto", backbone.kernels):
        raise ConfigError(
            f"{backbone.display_name} has {backbone.kernels!r} kernels only. Use kernels='auto'."
        )
