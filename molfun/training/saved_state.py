"""Write the resume state of a run to disk, and restore it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun.errors import CheckpointError, RunError
from molfun.nn.process import random_state, seed_everything, set_random_state
from molfun.parallel.base import Parallel
from molfun.parallel.ranks import Ranks
from molfun.runs import resume
from molfun.runs.resume import FitState
from molfun.training.ema import Average, WeightAverage, copy_weights
from molfun.training.runner import Runner
from molfun.training.schedule import RunSchedule

logger = logging.getLogger(__name__)

PER_STEP = "batches per step"
"""Name of that number, over all processes, in the identity of a run."""
_MISTYPED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a state with values of wrong types raises while it is restored."""


@dataclass
class SavedState:
    """Resume state of a run: everything that a killed run needs to go on bit by bit.

    Parameters
    ----------
    folder
        Folder of the state.
    identity
        Values that must be equal for a run to be resumed.
    runner
        Runner of the model, which may have a state besides the parameters.
    parameters
        Trainable parameters by name.
    optimizer, schedule, average, precision
        Parts whose state changes with each step; `precision` is Fabric's plug-in with the loss
        scaler.
    parallel
        How the model is spread over processes; the first writes for all what they have in common.
    accumulation
        Batches per optimizer step and process in the settings.
    """

    folder: Path
    identity: Mapping[str, Any]
    runner: Runner
    _: KW_ONLY
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: RunSchedule
    average: Average | None
    precision: Any
    parallel: Parallel
    accumulation: int

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.parallel.ranks

    def exists(self) -> bool:
        """Return whether a state exists, damaged or not."""
        return (self.folder / resume.STATE_FILE).exists()

    def write(self, state: FitState, randoms: Sequence[Any] | None = None) -> None:
        """Write the state, with the current random state of each process or with `randoms`."""
        # every process has its own generators, and all must call this: gathering waits for each
        if randoms is None:
            randoms = self.ranks.gather(random_state())
        if not (self.ranks.is_first or self.parallel.in_step):
            return
        content = self.parallel.put_apart(self._content(state, randoms), self.folder)
        if self.ranks.is_first:
            resume.write_state(self.folder, content)

    def _content(self, state: FitState, randoms: Sequence[Any]) -> dict[str, Any]:
        content: dict[str, Any] = {
            "identity": dict(self.identity),
            "accumulation_steps": self.accumulation,
            "fit": state.to_dict(),
            "weights": {n: p.detach() for n, p in self.parameters.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "random": randoms[0] if self.ranks.size == 1 else randoms,
            "runner": self.runner.resume_state(),
        }
        # a finished run takes no further step; the moments of the optimizer are most of the bytes
        if not state.finished:
            # those of an open window, so that a run stopped in the middle of one repeats no batch
            gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
            content["progress"] = {
                "gradients": gradients,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.precision.state_dict(),
            }
        return content

    def write_best(self, state: FitState, best: Mapping[str, torch.Tensor]) -> None:
        """Write the best weights, and note their checksum in `state`."""
        best = self.parallel.full(best)
        if self.ranks.is_first:
            state.best_sha256 = resume.write_best(self.folder, state.epoch, best)

    def take_up(
        self, content: Mapping[str, Any]
    ) -> tuple[FitState, dict[str, torch.Tensor] | None]:
        """Restore model, optimizer and random state.

        Parameters
        ----------
        content
            From `read_stored`.

        Returns
        -------
        tuple
            State of the fit and its best weights so far.

        Raises
        ------
        CheckpointError
            If the state is damaged or does not fit the run.
        RunError
            If the run was started with other settings.
        """
        resume.check_same_run(content["identity"], self.identity, self.folder)
        try:
            state = self._put_back(content)
        except _MISTYPED as error:
            raise CheckpointError(
                f"{self.folder / resume.STATE_FILE} does not fit the run: "
                f"{type(error).__name__} {' '.join(str(error).split())[:200]}. {resume.ADVICE}"
            ) from error
        best = None
        if state.best_epoch:
            best = self.parallel.own(resume.read_best(self.folder, state))
            self._check_shapes(best, "the best weights")
        if not (state.epoch or state.batch):
            logger.warning("The run was stopped during its set-up: it starts from its beginning.")
        logger.info(
            "Resumed after %d epochs, %d batches and %d optimizer steps.",
            state.epoch,
            state.batch,
            state.step,
        )
        return state, best

    def _put_back(self, content: Mapping[str, Any]) -> FitState:
        state = FitState.from_dict(content["fit"])
        self._check_shapes(content["weights"], "the weights")
        copy_weights(content["weights"], self.parameters)
        if isinstance(self.average, WeightAverage):
            self._check_shapes(content["average"]["average"], "the average")
            self.average.load_state_dict(content["average"])
        self.runner.load_resume_state(content["runner"])
        self._put_back_randoms(content["random"], state)
        if self.ranks.size > 1:
            # several processes count the labels of a window when it closes
            state.loss_count -= state.window_count
        if not self.ranks.is_first:
            # what the open window has so far is added up over the processes when it closes
            state.window_count, state.window_batches = 0, 0
            state.window_bad, state.window_ids = False, []
        if not state.finished:
            progress = content["progress"]
            self.parallel.put_back(progress["gradients"], self.parameters)
            self.optimizer.load_state_dict(progress["optimizer"])
            self.schedule.load_state_dict(progress["schedule"])
            self.precision.load_state_dict(progress["scaler"])
        return state

    def _put_back_randoms(self, randoms: Any, state: FitState) -> None:
        stored = randoms if isinstance(randoms, list) else [randoms]
        if len(stored) == self.ranks.size:
            set_random_state(stored[self.ranks.index])
            return
        logger.warning(
            "The run was started with %d processes and goes on with %d: with the same result, but "
            "for other draws of dropout.",
            len(stored), self.ranks.size,
        )  # fmt: skip
        # others than those of the first steps
        seed_everything(int(self.identity["seed"]) + 7919 * (state.step + 1) + self.ranks.index)

    def _check_shapes(self, stored: Mapping[str, torch.Tensor], what: str) -> None:
        """Refuse weights with other names or shapes: ``copy_`` would broadcast or skip them."""
        found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        ours = {name: tuple(p.shape) for name, p in self.parameters.items()}
        other = sorted(n for n in {*found, *ours} if found.get(n) != ours.get(n))
        if other:
            raise CheckpointError(
                f"{self.folder}: {what} stored there do not fit the model "
                f"({', '.join(other[:3])}). {resume.ADVICE}"
            )


def read_stored(folder: Path, parallel: Parallel) -> dict[str, Any] | None:
    """Return the state in a folder; None if none was written yet, which is said.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    # the first process decides for all: it may write a state while others still look
    if not parallel.ranks.gather((folder / resume.STATE_FILE).exists())[0]:
        logger.warning("%s holds no state yet: the run starts from its beginning.", folder)
        return None
    content = resume.read_state(folder)
    _modernise(content)
    return parallel.put_together(content, folder)


def _modernise(content: dict[str, Any]) -> None:
    """Write what older versions counted per process as counts of all processes."""
    identity = content["identity"]
    if isinstance(identity, dict) and PER_STEP not in identity and "processes" in identity:
        size = int(identity.pop("processes"))
        identity[PER_STEP] = size * int(identity.pop("strategy.accumulation_steps", 1))
        content["fit"]["batch"] = size * int(content["fit"].get("batch", 0))


def batches_per_step(stored: Mapping[str, Any], accumulation: int, ranks: Ranks) -> int:
    """Return the batches of an optimizer step, which a run keeps on another number of processes.

    Parameters
    ----------
    stored
        From `read_stored`.
    accumulation
        Those of each process, as the settings ask for them.
    ranks
        The processes that go on.

    Raises
    ------
    RunError
        If these processes cannot share them equally.
    """
    asked = accumulation * ranks.size
    before = int(stored["identity"].get(PER_STEP, asked))
    randoms = stored["random"]
    size = len(randoms) if isinstance(randoms, list) else 1
    # of an older version there is none, and a damaged file may hold anything
    asked_before = stored.get("accumulation_steps")
    if size == ranks.size and not (isinstance(asked_before, int) and asked_before == accumulation):
        return asked  # other settings are refused, as all that differ
    if before % ranks.size:
        raise RunError(
            f"The run has {before} batches per optimizer step, which {ranks.size} processes cannot "
            f"share equally. Resume it with a number of processes that divides {before}."
        )
    return before
