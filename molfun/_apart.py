"""Tensors of a file whose memory can be given back one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class TensorsApart(Mapping[str, "torch.Tensor"]):
    """Tensors of a safetensors file, each read when it is asked for, by a mapping of its own."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._open = lambda: safe_open(path, framework="pt")
        with self._open() as file:
            self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._open() as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
