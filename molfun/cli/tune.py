"""Search settings: trials of fine-tuning, judged on validation rows alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from molfun._io import write_text
from molfun._paths import as_path
from molfun.cli.command_settings import TuneSettings
from molfun.cli.console import duration, errors_in_one_line, say, set_up_logging
from molfun.cli.plugins import load_plugin_of
from molfun.cli.settings import FineTuneSettings, paths_in
from molfun.cli.showing import failing
from molfun.cli.sources import settings_of
from molfun.cli.tune_space import read_space, with_drawn
from molfun.cli.tune_trials import Trials
from molfun.config import dump_yaml
from molfun.errors import ConfigError, RunError
from molfun.parallel.failures import watch_parent
from molfun.runs.folder import CACHE, LOG
from molfun.text import counted, three_digits
from molfun.tuning.results import STUDY, FinishedTrial, StudyResults, read_about
from molfun.tuning.space import Space, label_of
from molfun.tuning.study import Study

BEST = "best.yaml"
"""Settings of the best trial, for ``molfun fine-tune --config``."""
TRIALS = 50
"""Trials of a study that names no number."""
_UNUSED = ("old_data", "devices", "num_nodes", "logger", "slurm")
"""Settings of a single run that a search has no use for."""
_WORKER = "import sys; from molfun.cli.tune import work; work(*sys.argv[1:])"
_PARENT = "MOLFUN_TUNE_PARENT"
"""Variable with the number of the process that started a worker."""


def tune(given: Mapping[str, Any]) -> None:
    """Run the trials of a study with the flags, or go on with the study in their folder."""
    search = Search(given)
    study = search.study()
    trials = search.n_trials(study)
    say(f"Study: {counted(trials, 'trial')} in {study.path}, by {study.monitor}")
    n_before = len(study.trials)
    if n_before:
        say(f"Goes on after {counted(n_before, 'trial')}.")
    try:
        if search.options.workers > 1:
            _run_workers(search)
        else:
            study.run(trials, on_end=lambda ended: _say_trial(study, ended))
    finally:
        if study.trials:
            study.write_table()
    _finish(search, study)


def work(output: str, plugin: str = "") -> None:
    """Run trials of a study that another process began, until there are enough."""
    watch_parent(int(os.environ[_PARENT]))
    given = {"output": output, **({"plugin": plugin} if plugin else {})}
    with errors_in_one_line(debug=False):
        search = Search(given)
        study = search.study()
        study.run(search.n_trials(study), on_end=lambda ended: _say_trial(study, ended))


class Search:
    """Settings of ``molfun tune``: those of the flags, and for the rest those of its folder.

    Parameters
    ----------
    given
        Flags by name.

    Raises
    ------
    ConfigError
        If config or space are missing and the folder holds no study, or something is wrong in
        them.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        folder = as_path(given.get("output") or TuneSettings.model_fields["output"].default)
        about = read_about(folder)
        self.options, _ = TuneSettings.take({**_stored(about), **given})
        self.folder = folder
        self.base = self._base(about)
        unused = [name for name in _UNUSED if getattr(self.base, name, None) and
                  self.base.is_changed(name)]  # fmt: skip
        if unused:
            raise ConfigError(f"A search does not use {', '.join(unused)}: leave it out.")
        self.space = self._space(about)

    def _base(self, about: Mapping[str, Any] | None) -> FineTuneSettings:
        options = self.options
        if about is not None and options.config is None:
            if options.overrides:
                raise ConfigError(
                    f"{self.folder} has its settings already: leave out "
                    f"{' '.join(options.overrides)}, or choose another --output."
                )
            if options.plugin is None:
                found = about["base"].get("plugin")
                load_plugin_of(self.folder / STUDY, found, [], trust=False)
            base = FineTuneSettings.build(about["base"], source=str(self.folder / STUDY))
        elif options.config is None:
            raise ConfigError(
                f"{self.folder} holds no study yet: give --config with the settings of all trials, "
                f"and --space with what is drawn."
            )
        else:
            flags = {"config": options.config, "overrides": options.overrides}
            more = {"output": str(self.folder), "plugin": options.plugin}
            given = {**flags, **{name: value for name, value in more.items() if value}}
            base, _ = settings_of(FineTuneSettings, given)
        return _with_whole_paths(base)

    def _space(self, about: Mapping[str, Any] | None) -> Space:
        if self.options.space is not None:
            return read_space(self.options.space, self.base)
        if about is None:
            raise ConfigError("Give --space: a YAML file that maps settings to what is drawn.")
        return Space.of(about["space"], source=str(self.folder / STUDY))

    def study(self) -> Study:
        """Open the data and the study; errors in either come before any trial."""
        set_up_logging(None, debug=self.options.debug)
        trials = Trials(self.base, self.options.folds)
        base = self.base.model_dump(exclude_defaults=True, exclude={"output", "started_in"})
        study = Study(
            self.folder,
            self.space,
            trials,
            monitor=self.base.monitor,
            direction="maximize" if trials.higher_is_better else "minimize",
            sampler=self.options.sampler,
            pruning=self.options.pruning,
            seed=self.options.study_seed,
            about={"base": base, "folds": self.options.folds, "data": trials.identity()},
        )
        # the folder is known to be that of the study only now
        set_up_logging(str(self.folder / LOG), debug=self.options.debug)
        for handler in logging.getLogger("molfun").handlers:
            handler.addFilter(_Once())
        return study

    def n_trials(self, study: Study) -> int:
        """Return the number of trials that was asked for, now or at the last start."""
        asked = self.options.trials or study.asked or TRIALS
        study.asked = asked
        return asked


def _stored(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the flags with which a study was begun."""
    if about is None:
        return {}
    if "base" not in about:
        raise ConfigError(
            "This folder holds a study of molfun.tuning.Study, whose objective is in Python: "
            "choose another --output."
        )
    return {"study_seed": about["seed"], **{n: about[n] for n in ("sampler", "pruning", "folds")}}


def _with_whole_paths(base: FineTuneSettings) -> FineTuneSettings:
    """Return settings that mean the same files in every directory."""
    whole: dict[str, Any] = {}
    for name in paths_in(type(base)):
        given = getattr(base, name)
        if isinstance(given, str):
            whole[name] = os.path.abspath(as_path(given))  # noqa: PTH100  # links stay links
        elif isinstance(given, list):
            whole[name] = [os.path.abspath(as_path(one)) for one in given]  # noqa: PTH100
    return base.model_copy(update=whole)


class _Once(logging.Filter):
    """Filter that lets each line through once: all trials warn of the same data."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is new."""
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in self._seen:
            self._seen.add(text)
            return True
        return False


def _say_trial(study: StudyResults, ended: FinishedTrial) -> None:
    drawn = "  ".join(f"{name}={_shown(value)}" for name, value in ended.settings.items())
    what = f"{study.monitor}={three_digits(ended.value)}"
    if ended.state == "failed":
        what = f"failed: {ended.error}"
    elif ended.state == "pruned":
        what += f"  pruned after {len(ended.reported)}"
    say(f"  trial {ended.number:3d}  {what}  {drawn}  ({duration(ended.seconds)})")


def _shown(value: Any) -> str:
    return three_digits(value) if isinstance(value, float) else str(label_of(value))


def _run_workers(search: Search) -> None:
    """Start processes that run trials, and wait for them."""
    n = search.options.workers
    command = [sys.executable, "-c", _WORKER, str(search.folder), search.base.plugin or ""]
    started = [
        subprocess.Popen(command, env={**os.environ, **_environment(i, n)}) for i in range(n)
    ]
    try:
        codes = [one.wait() for one in started]
    except BaseException:
        _end(started)
        raise
    failed = [code for code in codes if code]
    if len(failed) == n:
        raise RunError(f"All {n} workers ended early (exit code {failed[0]}); see above.")
    if failed:
        say(f"{len(failed)} of {n} workers ended early; the others ran their trials again.")


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """End workers, and wait until none writes any more."""
    for one in workers:
        one.terminate()
    for one in workers:
        one.wait()


def _environment(index: int, n: int) -> dict[str, str]:
    """Return the share of the machine of one of several processes: its cores, and a GPU."""
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n))}
    share = {name: text for name, text in share.items() if name not in os.environ}
    share[_PARENT] = str(os.getpid())
    if torch.cuda.device_count() > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(torch.cuda.device_count()))
        )
        gpus = named.split(",")
        share["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return share


def _finish(search: Search, study: Study) -> None:
    """Write the settings of the best trial and the report, and say what was found."""
    best, trials = study.best, study.trials
    path = write_best(search, best)
    counts = [f"{sum(one.state == s for one in trials)} {s}"
              for s in ("complete", "pruned", "failed", "running")
              if any(one.state == s for one in trials)]  # fmt: skip
    say(f"\nTrials: {', '.join(counts)}")
    say(f"Best: trial {best.number}, {study.monitor}={three_digits(best.value)}")
    for name, value in best.settings.items():
        say(f"  {name}: {_shown(value)}")
    say("Its value chose it among the trials, so that it is too good for an estimate: measure it "
        "on test rows, which no trial saw.")  # fmt: skip
    say(f"Everything is in {study.path}: trials.csv, {BEST}, {STUDY}, run.log")
    say(f"Train the best: molfun fine-tune --config {path}")
    if search.options.report:
        with failing("report"):
            # on first use: matplotlib takes half a second to import
            from molfun.report.tuned import write_study_report

            say(f"Report: {write_study_report(study.path)}")


def write_best(search: Search, best: FinishedTrial) -> Path:
    """Write the settings of a trial as a file for ``molfun fine-tune``, and return its path."""
    settings = with_drawn(search.base, best.settings)
    places = {
        "output": str(search.folder / "best"),
        "cache_dir": settings.cache_dir or os.path.abspath(search.folder / CACHE),  # noqa: PTH100
    }
    values = settings.model_dump(exclude_defaults=True, exclude={"started_in"})
    write_text(search.folder / BEST, dump_yaml({**values, **places}))
    return search.folder / BEST
