"""Ability of a backbone to run faster code with the same results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.strict import check_choice

Kernels = Literal["auto", "stock", "fast"]
"""Whose code runs: that of the backbone's package, or Molfun's faster one with the same results."""
KERNELS_SWITCH = "MOLFUN_KERNELS"
"""Environment variable: what ``"auto"`` stands for, ``stock`` or ``fast``."""


class KernelChoice(ABC):
    """Mix-in for a `Backbone` that has both kinds of code; ``kernels`` says which runs now."""

    @abstractmethod
    def set_kernels(self, kernels: Kernels) -> None:
        """Switch to this code; weights and their names do not change.

        Parameters
        ----------
        kernels
            ``"stock"`` is the package's own, ``"fast"`` insists on Molfun's, ``"auto"`` takes
            Molfun's where it gives the same numbers.

        Raises
        ------
        ConfigError
            If the name is unknown, or that code fails its test here.
        """


def check_kernels(kernels: str) -> None:
    """Refuse an unknown name.

    Raises
    ------
    ConfigError
        With the nearest name.
    """
    check_choice("kernels", kernels, get_args(Kernels))


def choose_kernels(backbone: Backbone, kernels: Kernels) -> None:
    """Switch a backbone to `kernels` if it has a choice; see `KernelChoice.set_kernels`.

    Raises
    ------
    ConfigError
        If the name is unknown, the backbone has no such code, or that fails its test here.
    """
    check_kernels(kernels)
    if isinstance(backbone, KernelChoice):
        backbone.set_kernels(kernels)
    elif kernels not in ("auto", backbone.kernels):
        raise ConfigError(
            f"{backbone.display_name} has {backbone.kernels!r} kernels only. Use kernels='auto'."
        )
