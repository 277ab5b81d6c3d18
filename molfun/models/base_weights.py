"""Find the base weights of a checkpoint, also after files or folders were moved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from molfun._io import is_within
from molfun._paths import as_path
from molfun.errors import CheckpointError, RunError


class Stored:
    """Marker in place of a weight file: the checkpoint that is loaded next holds all weights."""


STORED = Stored()


def as_given(weights: str | Path) -> str:
    """Return an absolute path, without following links.

    Links of Hugging Face's cache, DVC or git-annex point to files whose names are hashes and may
    change; the name of the link is the stable one.
    """
    return str(as_path(weights).absolute())


def note(weights: str | None, folder: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint in `folder` about the file its model started from."""
    if weights is None:
        return {"weights": None}
    # os.path, since Path.is_file raises on a name that is too long
    size = os.stat(weights).st_size if os.path.isfile(weights) else None  # noqa: PTH113, PTH116
    return {
        "weights": weights,
        # three ways back to the file: as given, from the checkpoint if both moved, behind links;
        # the size spares reading every large file near a checkpoint
        "weights_from_here": os.path.relpath(weights, folder.absolute()),
        "weights_target": os.path.realpath(weights),
        "weights_size": size,
    }


def places(
    backbone: Mapping[str, Any], folder: Path, *, given: str | Path | None = None
) -> list[Path]:
    """Return files that may be the base weights, most probable first; the fingerprint decides.

    The path from training comes first, wherever a link there leads today. If folders were moved
    together, the relative path from the checkpoint is still right. Otherwise files of the same name
    or size next to the checkpoint or its run are tried. With `given`, no other path is tried.

    Raises
    ------
    CheckpointError
        If none of them exists.
    """
    found: dict[str, Path] = {}
    for place in _tried(backbone, folder) if given is None else [as_path(given)]:
        if os.path.exists(place):  # noqa: PTH110  # no errors on names that cannot be
            found.setdefault(os.path.realpath(place), place)
    if not found:
        raise CheckpointError(
            f"{folder} was trained on the base weights {given or backbone['weights']}, which are "
            f"not there. Pass weights=... with the place where they are, or put them "
            f"next to the checkpoint."
        )
    return list(found.values())


def _tried(backbone: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    given, size = Path(str(backbone["weights"])), backbone.get("weights_size")
    yield Path(os.path.expanduser(given))  # noqa: PTH111  # no error on a user not known here
    if backbone.get("weights_from_here"):
        yield folder / str(backbone["weights_from_here"])
    if backbone.get("weights_target"):
        yield Path(str(backbone["weights_target"]))
    here = folder.absolute()
    # next to the checkpoint, and next to the run that holds it
    for near in (here.parent, here.parent.parent):
        yield near / given.name
        try:
            entries = sorted(near.iterdir()) if size else []
        except OSError:
            continue
        yield from (p for p in entries if p.is_file() and p.stat().st_size == size)


def refuse_own(weights: str | None, written: Iterable[Path]) -> None:
    """Refuse to overwrite the file that the model's base weights came from.

    Raises
    ------
    RunError
        If it lies in one of the `written` paths: the checkpoint could not find it again.
    """
    for path in () if weights is None else written:
        if is_within(Path(str(weights)), path):
            raise RunError(
                f"{path} would be replaced, and the base weights of this model are {weights}. "
                f"Choose another folder, or copy the weights elsewhere."
            )
