"""Run the trials of a study, alone or together with other processes, and across kills."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from molfun._io import write_text
from molfun._paths import as_path
from molfun.config import check_seed, flattened
from molfun.errors import ConfigError, RunError
from molfun.runs.folder import CACHE, REPORT
from molfun.strict import check_choice
from molfun.text import first_line
from molfun.training.cache import CacheConfig
from molfun.training.history import History, monitored
from molfun.tuning.claims import Claims
from molfun.tuning.results import (
    CLAIMS,
    JOURNAL,
    STUDY,
    TRIALS,
    FinishedTrial,
    StudyResults,
    best_of,
    need_optuna,
    read_about,
)
from molfun.tuning.space import Space
from molfun.tuning.trial import Trial

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of ``study.json``."""
Direction = Literal["minimize", "maximize"]
Sampler = Literal["tpe", "random"]
Pruning = Literal["median", "off"]
Objective = Callable[[Trial], "float | History"]
"""Function that runs a trial; returns its value, or the history of a fit, whose best one it is."""
OWN_FILES = (JOURNAL, TRIALS, REPORT)


class Study(StudyResults):
    """Search of settings in a folder, which other processes may join, and which survives any kill.

    A trial that was running when its process ended, in whatever way, is run again with the same
    settings by the next process that is free. With one process, a study that was killed and
    started again has the same trials, with the same values, as one that was not. With several,
    what is drawn depends on which trials have ended by then, so that the same set of settings is
    not promised.

    Parameters
    ----------
    output_dir
        Folder of the study. One that it holds already is continued, if it is of the same.
    space
        What trials draw: a `Space`, or what `Space.of` takes.
    objective
        Runs a trial and returns its value, or the `molfun.History` of a fit.
    monitor
        Name of the value, and of what `Trial` reports of an epoch: "val/loss", "val/rmse" ...
    direction
        Whether the smallest or the largest value is the best.
    sampler
        ``"tpe"``, the tree-structured Parzen estimator, or ``"random"``.
    pruning
        ``"median"`` ends a trial that is worse at a step than half of the complete trials were
        there (from the second epoch or fold, and the sixth trial on); ``"off"`` none.
    seed
        Seed of the draws: each depends on the seed, the number of the trial and the finished ones.
    about
        Plain values that processes must have in common to work on one study, such as settings that
        are not drawn.

    Raises
    ------
    ConfigError
        If an argument is not allowed.
    RunError
        If the folder holds another study, or files of something else.
    MissingDependencyError
        Without optuna.

    References
    ----------
    Akiba et al. 2019, "Optuna: a next-generation hyperparameter optimization framework"; Bergstra
    et al. 2011, "Algorithms for hyper-parameter optimization" (TPE).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = Study(
    ...         folder, {"x": {"low": -1.0, "high": 1.0}}, lambda trial: trial["x"] ** 2
    ...     )
    ...     best = study.run(12)
    ...     abs(best.settings["x"]) < 0.5, len(study.trials), len(study.run(12).settings)
    (True, 12, 1)
    """

    def __init__(
        self,
        output_dir: str | Path,
        space: Space | Mapping[str, Any],
        objective: Objective,
        *,
        monitor: str = "val/loss",
        direction: Direction = "minimize",
        sampler: Sampler = "tpe",
        pruning: Pruning = "median",
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        need_optuna()
        check_choice("direction", direction, get_args(Direction))
        check_choice("sampler", sampler, get_args(Sampler))
        check_choice("pruning", pruning, get_args(Pruning))
        made = space if isinstance(space, Space) else Space.of(space)
        self._objective = objective
        path = as_path(output_dir)
        wanted = {
            "format": FORMAT,
            "monitor": monitor,
            "direction": direction,
            "sampler": sampler,
            "pruning": pruning,
            "seed": check_seed(seed),
            "space": made.plain(),
            **dict(about or {}),
        }
        with Claims(path / CLAIMS) as claims, claims.alone():
            _begin(path, json.loads(json.dumps(wanted, default=str)))
        super().__init__(path)

    @property
    def cache(self) -> CacheConfig:
        """Cache of what is frozen, in the folder of the study."""
        return CacheConfig(directory=self.path / CACHE, keep_for_others=True)

    @property
    def asked(self) -> int | None:
        """Number of trials that the last start of ``molfun tune`` asked for."""
        found = self.optuna.user_attrs.get("trials")
        return None if found is None else int(found)

    @asked.setter
    def asked(self, trials: int) -> None:
        if trials != self.asked:
            self.optuna.set_user_attr("trials", trials)

    def run(
        self, trials: int, *, on_end: Callable[[FinishedTrial], None] = lambda _: None
    ) -> FinishedTrial:
        """Run trials until the study has so many, and return the best.

        Parameters
        ----------
        trials
            Trials of the whole study, those of other processes and of earlier starts included.
        on_end
            Called after each trial of this process.

        Raises
        ------
        RunError
            If no trial succeeded; the text has the first error.
        """
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise ConfigError(f"trials must be a whole number of at least 1, got {trials!r}.")
        with Claims(self.path / CLAIMS) as claims:
            while (number := self._take(claims, trials)) is not None:
                ended = self._run(number, claims)
                on_end(ended)
        return best_of(self.trials, higher_is_better=self.higher_is_better)

    def _take(self, claims: Claims, trials: int) -> int | None:
        """Claim a trial that a process left, or else a new one; None if there are enough."""
        with claims.alone():
            found = self.optuna.get_trials(deepcopy=False)
            for one in found:
                if not one.state.is_finished() and claims.take(one.number):
                    logger.info("Trial %d was left by a process that ended.", one.number)
                    return int(one.number)
            if len(found) >= trials:
                return None
            self.optuna.ask()
            if not claims.take(len(found)):
                raise RunError(f"{self.path / CLAIMS} is damaged: remove it.")
            return len(found)

    def _run(self, number: int, claims: Claims) -> FinishedTrial:
        """Run a claimed trial, and write how it ended."""
        import optuna

        from molfun.tuning import storage

        start = time.perf_counter()
        own = storage.as_trial(self.optuna, self.optuna.get_trials(deepcopy=False)[number])
        settings = self.space.draw(lambda key, node: storage.drawn(own, key, node))
        own.set_user_attr("settings", settings)

        def note(value: float, step: int) -> None:
            if step not in self.optuna.get_trials(deepcopy=False)[number].intermediate_values:
                own.report(value, step)
            if self.about["pruning"] != "off" and storage.is_hopeless(self.optuna, own, step):
                raise optuna.TrialPruned(f"worse than half of the others at step {step}")

        trial = Trial(number, settings, cache=self.cache, monitor=self.monitor, note=note)
        state, value, error = optuna.trial.TrialState.COMPLETE, None, ""
        try:
            value = _value(self._objective(trial))
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        # whatever a combination of settings brings about; Ctrl-C and signals are none of these
        except Exception as failure:
            logger.debug("Trial %d failed", number, exc_info=True)
            error = f"{type(failure).__name__}: {first_line(failure)}"
        if value is not None and not math.isfinite(value):
            error = f"{self.monitor} is {value} in every epoch"
        if error:
            state, value = optuna.trial.TrialState.FAIL, None
        own.set_user_attr("seconds", time.perf_counter() - start)
        if error:
            own.set_user_attr("error", error)
        with claims.alone():
            self.optuna.tell(number, value, state)
            claims.drop(number)
            self.write_table()
        return self.trials[number]


def _value(given: float | History) -> float:
    if isinstance(given, History):
        return monitored(given.best, given.monitor)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ConfigError(f"The objective must return a number or a History, got {given!r}.")
    return float(given)


def _begin(path: Path, wanted: dict[str, Any]) -> None:
    """Write what a study is of, or compare it with the one that is there."""
    found = read_about(path)
    if found is not None:
        _compare(path, found, wanted)
        return
    present = [name for name in OWN_FILES if os.path.lexists(path / name)]
    if present:
        raise RunError(
            f"{path} holds {' and '.join(present)}, which no study wrote. Choose another output "
            f"folder."
        )
    # not sorted: settings stay in the order of the space
    write_text(path / STUDY, json.dumps(wanted, indent=2) + "\n")


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a study of something else, in one line."""
    sections = [n for n in {**wanted, **found} if found.get(n) != wanted.get(n)]
    if not sections:
        return
    old, new = (flattened({n: values.get(n) for n in sections}) for values in (found, wanted))
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    texts = [f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in differ[:3]]
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise RunError(
        f"{path} holds a study of another {' and another '.join(sections)} ({', '.join(texts)}"
        f"{more}). Repeat its settings to go on with it, or choose another output folder."
    )
