"""Carry a model through a pickle as the files of its checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun.models.structure import MolfunStructureModel


def packed(model: MolfunStructureModel) -> dict[str, bytes]:
    """Return the files of the model's checkpoint by their relative paths.

    A pickle of the modules themselves would break with each change of a class; the checkpoint
    format is read by later versions, and holds no base weights that lie in a file.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "checkpoint")
        model.save(folder)
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }


def unpacked(files: Mapping[str, bytes], **options: Any) -> MolfunStructureModel:
    """Return the model of `packed` files; options as `MolfunStructureModel.from_checkpoint`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "checkpoint")
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return MolfunStructureModel.from_checkpoint(folder, **options)
