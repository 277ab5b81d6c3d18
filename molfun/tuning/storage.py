"""Optuna's side of a study: a journal on disk, and draws that depend on the trial alone."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from molfun._io import disk_errors
from molfun.tuning.claims import FileLock
from molfun.tuning.space import Choices, Node

NAME = "molfun"
"""Name of the study in its journal."""
STARTUP_TRIALS = 5
"""Finished trials before any other is pruned."""
SAMPLERS: Mapping[str, Callable[[int], Any]] = {
    # one setting at a time: with settings that belong to choices, trials share no common space
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed, multivariate=False, constant_liar=True
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


class _Journal(JournalFileBackend):
    """Journal that goes on after an entry that was cut short.

    The next entry would otherwise be appended to it, and nothing after both could be read. The
    lock ends with its process: optuna's own would be waited for half a minute after a kill.
    """

    def __init__(self, path: Path) -> None:
        with disk_errors(path):
            super().__init__(str(path))
        self._own_lock = FileLock(path.with_name(f"{path.name}.lock"))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, each on a line of its own."""
        path = Path(self._file_path)
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with disk_errors(path), self._own_lock, path.open("rb+") as file:
            _cut_short_entry(file)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_short_entry(file: IO[bytes]) -> None:
    """Go to the end of a journal, without an entry that lacks its end."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)


class _Seeded(optuna.samplers.BaseSampler):
    """Draw each setting with a seed of its own, of study, trial and name.

    So a draw depends on the finished trials alone: a trial that was killed before, while or after
    its settings were drawn has the same ones when it runs again.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._make, self._seed = SAMPLERS[kind], seed

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        text = f"{self._seed} {trial.number} {param_name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return self._make(seed).sample_independent(study, trial, param_name, param_distribution)


def open_study(path: Path, *, direction: str, sampler: str = "tpe", seed: int = 0) -> Any:
    """Return the optuna study in a journal, which is made if it is not there."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created ..."
    try:
        return optuna.create_study(
            storage=JournalStorage(_Journal(path)),
            study_name=NAME,
            direction=direction,
            sampler=_Seeded(sampler, seed),
            pruner=optuna.pruners.NopPruner(),  # `is_hopeless` is asked in its place
            load_if_exists=True,
        )
    finally:
        optuna.logging.set_verbosity(verbosity)


def as_trial(study: Any, frozen: Any) -> Any:
    """Return the trial that draws and reports, of one in storage; it may have begun elsewhere."""
    return optuna.trial.Trial(study, frozen._trial_id)


def drawn(trial: Any, key: str, node: Node) -> Any:
    """Draw a value; one that was drawn before is kept."""
    if isinstance(node, Choices):
        label = trial.suggest_categorical(key, node.labels)
        return node.options[node.labels.index(label)]
    low, high, step, log = node.low, node.high, node.step, node.log
    if isinstance(low, int):
        return trial.suggest_int(key, low, high, step=1 if step is None else step, log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


def is_hopeless(study: Any, trial: Any, step: int) -> bool:
    """Return whether a trial is worse at a step than half of the others were.

    What a killed process had reported of later steps is not looked at.
    """
    frozen = copy.copy(study._storage.get_trial(trial._trial_id))
    frozen.intermediate_values = {s: v for s, v in frozen.intermediate_values.items() if s <= step}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=2)
    return bool(pruner.prune(study, frozen))


def importances(study: Any, keys: list[str]) -> dict[str, float]:
    """Return the shares of the variance of the values that settings explain, by fANOVA."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
    return {name: float(share) for name, share in found.items()}
