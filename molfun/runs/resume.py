"""Resume state of a run: files from which a killed run goes on as if it had never stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from molfun._io import (
    checksum_of,
    format_of,
    is_sealed,
    load_safetensors,
    load_torch,
    save_safetensors,
    save_torch,
)
from molfun.errors import CheckpointError, RunError
from molfun.text import listing

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
BEST_FILE = "best-{epoch}.safetensors"
OLD_BEST_FILE = "best.safetensors"
"""Name of the best weights in format 1."""
FORMAT = 2
"""Since format 2, the state carries a checksum, and names its best weights with their checksum."""
ADVICE = (
    "Put back a copy of it, or start the run again in its place with overwrite=True (--overwrite)."
)
PARTS = {"identity", "fit", "weights", "average", "random"}


@dataclass
class FitState:
    """Progress of a fit: everything that changes during a fit and is not a tensor."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches done in the current epoch."""
    step: int = 0
    """Optimizer steps done."""
    window_count: int = 0
    """Labels in the open accumulation window."""
    window_batches: int = 0
    """Batches in the open window."""
    window_bad: bool = False
    """True if a loss in the open window was not finite."""
    window_ids: list[str] = field(default_factory=list)
    """Ids of the samples in the open window."""
    loss_total: float = 0.0
    """Sum of the training loss in the current epoch."""
    loss_count: int = 0
    """Labels in that sum."""
    bad_in_row: int = 0
    """Successive windows with a non-finite loss or gradient."""
    skipped_windows: int = 0
    """All windows with a non-finite loss or gradient so far."""
    best_score: float = float("inf")
    """Best monitored value, negated if the largest is the best."""
    best_epoch: int = 0
    """Epoch of the best value (from 1)."""
    best_sha256: str = ""
    """Checksum of the file with the weights of that epoch."""
    since_best: int = 0
    """Epochs since the best one."""
    finished: str = ""
    """Reason why the fit ended; empty while it runs."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the history so far."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FitState:
        """Build the state from what `to_dict` gave; TypeError or ValueError for anything else."""
        state, kinds = cls(**content), cls().to_dict()
        numbers = (int, float)
        for name, default in kinds.items():
            allowed = numbers if type(default) is float else (type(default),)
            # exact types: isinstance would let True pass as an int
            if type(getattr(state, name)) not in allowed:
                raise TypeError(f"{name} is no {type(default).__name__}")
        for row in state.history:
            if not isinstance(row, dict) or any(type(v) not in numbers for v in row.values()):
                raise TypeError("history holds other things than rows of numbers")
            if not {"epoch", "train_loss", "val_loss", "lr", "steps"} <= row.keys():
                raise ValueError("a row of history lacks columns")
        if len(state.history) != state.epoch:
            raise ValueError(f"{len(state.history)} rows of history for {state.epoch} epochs")
        return state


def write_state(directory: Path, content: Mapping[str, Any]) -> None:
    """Write the resume state atomically, then remove weights and parts that it does not name."""
    save_torch(directory / STATE_FILE, {"format": FORMAT, **content})
    named = best_file(content["fit"]["best_epoch"])
    # after the state: until then the old state needs its own best weights
    for path in directory.glob("best*.safetensors"):
        if path.name != named:
            with contextlib.suppress(OSError):  # a leftover costs space only
                path.unlink()
    parts = content.get("parts", {}).get("folder")
    for path in directory.glob("parts-*"):
        if path.name != parts:
            shutil.rmtree(path, ignore_errors=True)


def read_state(directory: Path) -> dict[str, Any]:
    """Read the resume state.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged or of another version.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"Nothing to resume: {path} does not exist. Start the run without resume."
        )
    content, sealed = load_torch(path, advice=ADVICE), is_sealed(path)
    found = format_of(content)
    if found not in (1, FORMAT):
        raise CheckpointError(f"{path} has format {found}; this version of Molfun reads {FORMAT}.")
    if found == FORMAT and not sealed:
        raise CheckpointError(f"{path} is damaged (checksum): it carries none. {ADVICE}")
    missing = sorted(PARTS - content.keys())
    if missing:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}. {ADVICE}")
    if found != FORMAT:
        logger.warning(
            "%s was written by an older version of Molfun and carries no checksum, so it "
            "cannot be verified.", path,
        )  # fmt: skip
    return content


def best_file(epoch: int) -> str:
    """Return the name of the file with the best weights, which are those of `epoch`."""
    return BEST_FILE.format(epoch=epoch)


# one file per epoch that was the best: a state names its file, and an older state keeps its own
def write_best(directory: Path, epoch: int, weights: Mapping[str, torch.Tensor]) -> str:
    """Write the best weights to a new file, and return its checksum.

    The weights that the state on disk names are kept until the next `write_state`, so that a
    process killed in between leaves a state together with its own best weights.
    """
    return save_safetensors(directory / best_file(epoch), weights)


def read_best(directory: Path, state: FitState) -> dict[str, torch.Tensor]:
    """Read the best weights that belong to a state.

    Raises
    ------
    CheckpointError
        If they are missing, damaged, or those of another run.
    """
    if not state.best_sha256:  # format 1
        return load_safetensors(directory / OLD_BEST_FILE, advice=ADVICE)
    path = directory / best_file(state.best_epoch)
    weights = load_safetensors(path, sealed=True, advice=ADVICE)
    if checksum_of(path) != state.best_sha256:
        raise CheckpointError(
            f"{path} is not the file that {STATE_FILE} next to it was written with (checksum): one "
            f"of them is from another run, or another point of this run. {ADVICE}"
        )
    return weights


def check_same_run(stored: Mapping[str, Any], present: Mapping[str, Any], directory: Path) -> None:
    """Refuse to resume a run under other settings.

    Raises
    ------
    RunError
        Listing every difference.
    """
    differences = [
        f"{key}: {stored.get(key)!r} in the run, {present.get(key)!r} now"
        for key in sorted({*stored, *present})
        if stored.get(key) != present.get(key)
    ]
    if differences:
        raise RunError(
            f"{directory} was started with other settings, so resuming would not continue it:\n"
            f"{listing(differences)}\nRepeat the settings of the run. To train on with others, "
            f"start a new run from its checkpoint: --init-from {directory.parent / 'checkpoint'} "
            f"with another --output, or in Python from_checkpoint(...).fit(...)."
        )
