"""Match the tensors of a file with those of a module, and report every difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from molfun.text import listing


@dataclass(frozen=True)
class KeyReport:
    """Weights that the file lacks, and weights that only the file has."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} weights missing:\n{listing(self.missing, 5)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected:\n{listing(self.unexpected, 5)}")
        return "\n".join(parts)


def tensors_in(content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors in a mapping; an empty dict for anything that is not a mapping."""
    items = content.items() if isinstance(content, Mapping) else ()
    return {name: value for name, value in items if isinstance(value, torch.Tensor)}


def match_keys(
    tensors: Mapping[str, torch.Tensor],
    model: Mapping[str, torch.Tensor],
    canonical: Callable[[str], str],
) -> tuple[dict[str, torch.Tensor], KeyReport]:
    """Rename `tensors` to the names in `model`, matching those with the same `canonical` name.

    Parameters
    ----------
    tensors
        Weights of a file.
    model
        Weights of the model.
    canonical
        Function that maps the names of all published layouts to one.

    Returns
    -------
    dict, KeyReport
        The tensors that the model has a place for, under its names; and the differences.

    Examples
    --------
    >>> tensors, model = {"a.w": torch.ones(1)}, {"w": torch.zeros(1), "b": torch.zeros(1)}
    >>> matched, report = match_keys(tensors, model, lambda name: name.removeprefix("a."))
    >>> matched, report.missing
    ({'w': tensor([1.])}, ('b',))
    """
    # Both sides pass through `canonical`, so neither the layout of the file nor that of the
    # installed package has to be known.
    wanted = {canonical(name): name for name in model}
    found = {canonical(name): name for name in tensors}
    matched = {wanted[key]: tensors[name] for key, name in found.items() if key in wanted}
    report = KeyReport(
        missing=tuple(wanted[key] for key in wanted if key not in found),
        unexpected=tuple(found[key] for key in found if key not in wanted),
    )
    return matched, report


def shape_conflicts(
    tensors: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return one line per weight whose shape in the file is not that of the model."""
    return [
        f"{name}: file {tuple(tensor.shape)}, model {tuple(model[name].shape)}"
        for name, tensor in tensors.items()
        if tensor.shape != model[name].shape
    ]
