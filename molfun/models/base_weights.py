"""Where the base weights of a checkpoint are: as they were given, or after files were moved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from molfun._io import is_within
from molfun._paths import as_path
from molfun.errors import CheckpointError, RunError


class Stored:
    """In place of a file of weights: a checkpoint that is loaded next holds all of them."""


STORED = Stored()


def as_given(weights: str | Path) -> str:
    """A path that stays right when the working directory changes; links are not followed.

    What a link of Hugging Face's cache, DVC or git-annex leads to has another name and may change.
    """
    return str(as_path(weights).absolute())


def note(weights: str | None, folder: Path) -> dict[str, Any]:
    """Return what a checkpoint in `folder` keeps of the file that its model started from."""
    if weights is None:
        return {"weights": None}
    size = os.stat(weights).st_size if os.path.isfile(weights) else None  # noqa: PTH113, PTH116
    return {
        "weights": weights,
        "weights_from_here": os.path.relpath(weights, folder.absolute()),
        "weights_target": os.path.realpath(weights),
        "weights_size": size,
    }


def places(
    backbone: Mapping[str, Any], folder: Path, *, given: str | Path | None = None
) -> list[Path]:
    """Files that may be the base weights, the likeliest first; the fingerprint decides.

    The path as it was given comes first, wherever a link there leads today. If folders were moved
    together, the way from the checkpoint is still right; otherwise a file of the same name or size
    beside the checkpoint or its run is tried. A path that is `given` now is the only one.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    found: dict[str, Path] = {}
    for place in _tried(backbone, folder) if given is None else [as_path(given)]:
        if os.path.exists(place):  # noqa: PTH110  # no errors on names that cannot be
            found.setdefault(os.path.realpath(place), place)
    if not found:
        raise CheckpointError(
            f"{folder} was trained on the base weights {given or backbone['weights']}, which are "
            f"not there. Pass weights=... with the place where they are, or put them "
            f"beside the checkpoint."
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
    for near in (here.parent, here.parent.parent):
        yield near / given.name
        try:
            entries = sorted(near.iterdir()) if size else []
        except OSError:
            continue
        yield from (p for p in entries if p.is_file() and p.stat().st_size == size)


def refuse_own(weights: str | None, written: Iterable[Path]) -> None:
    """Refuse to write over what the model's base weights came from.

    Raises
    ------
    RunError
        If they lie in what is `written`, and could not be found again.
    """
    for path in () if weights is None else written:
        if is_within(Path(str(weights)), path):
            raise RunError(
                f"{path} would be replaced, and the base weights of this model are {weights}. "
                f"Choose another folder, or copy the weights elsewhere."
            )
