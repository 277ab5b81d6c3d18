"""The folder of a run: names of its files, its lock, and whether a run may begin in it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from molfun import _temporary
from molfun._io import write_text
from molfun._paths import as_path
from molfun.config import read_yaml
from molfun.data.cells import escape
from molfun.errors import ConfigError, RunError
from molfun.registry import DATASETS
from molfun.runs.checkpoint import foreign_files
from molfun.runs.lock import DirectoryLock
from molfun.runs.resume import STATE_FILE

CHECKPOINT, RESUME, HISTORY, WEIGHTS = (
    "checkpoint", "resume", "history.csv", "weights.safetensors",
)  # fmt: skip
RUN_FILES = (CHECKPOINT, RESUME, HISTORY, WEIGHTS)
"""What `fit` and `pretrain` write into the folder of a run."""
CONFIG, SPLITS, LOG, CACHE = "config.yaml", "splits.csv", "run.log", "cache"
PREDICTIONS = ("predictions_val.csv", "predictions_test.csv")
_BESIDE = (
    file.name
    for kind in DATASETS
    for table in PREDICTIONS
    for file in DATASETS[kind]().files_beside(Path(table))
)
SCHEMA = "config.schema.json"
COMMAND_FILES = (CONFIG, SCHEMA, SPLITS, *PREDICTIONS, *_BESIDE)
"""What a command writes beside them, without log and cache."""
_FOLDERS = (CHECKPOINT, RESUME)
_LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        The folder, which need not exist.
    resume
        Whether the run in it is continued.

    Attributes
    ----------
    checkpoint : Path
        Folder of the portable checkpoint, of the best weights so far.
    state : Path
        Folder of the resume state.
    history : Path
        Table with one row per epoch.
    weights : Path
        Weights of a pre-trained backbone.
    config, log : Path
        Settings and log of a command.
    replaced : list of str
        Files of a former run that this one replaces; `check` finds them.

    Examples
    --------
    >>> RunFolder("runs/lora").checkpoint.as_posix()
    'runs/lora/checkpoint'
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = as_path(path)
        self.checkpoint, self.state = self.path / CHECKPOINT, self.path / RESUME
        self.history, self.weights = self.path / HISTORY, self.path / WEIGHTS
        self.config, self.log = self.path / CONFIG, self.path / LOG
        self.resume = resume
        self.replaced: list[str] = []
        self._is_checked = self._is_held = False

    @classmethod
    def of(cls, place: str | Path | RunFolder | None, *, resume: bool) -> RunFolder | None:
        """The folder at a path; None where there is none.

        Raises
        ------
        ConfigError
            If a run is to be resumed and no folder is named.
        """
        if place is None and resume:
            raise ConfigError("resume=True needs output_dir, the folder of the run to continue.")
        return place if isinstance(place, RunFolder | None) else cls(place, resume=resume)

    def check(self, *, overwrite: bool, settings: Collection[str] = ()) -> Self:
        """Refuse to begin where something would be lost, or to continue what is not there; once.

        A folder in which a run was killed before it wrote its first state holds nothing of worth,
        so a new run begins there as in an empty one.

        Parameters
        ----------
        overwrite
            Whether a run in the folder may be replaced.
        settings
            Names of the settings in the ``config.yaml`` of a run that writes one; files that no
            run wrote are then kept under the names of `COMMAND_FILES` as well.

        Raises
        ------
        RunError
            If there is a run and neither is it continued nor may it be replaced, if the run to be
            continued has lost its state, or if other files are in the place of those of a run.
        """
        if self._is_checked:
            return self
        self._is_checked = True
        self._refuse_other_files()
        resumable = os.path.lexists(self.state / STATE_FILE)
        results = self._results()
        if self.resume:
            if results and not resumable:
                raise self._lost_state(results)
        elif results or resumable:
            self._replace(overwrite=overwrite)
        elif settings and not overwrite:
            self._keep_what_no_run_wrote(settings)
        return self

    def _results(self) -> list[str]:
        return [n for n in (CHECKPOINT, HISTORY, WEIGHTS) if _has_content(self.path / n)]

    def _lost_state(self, results: Sequence[str]) -> RunError:
        return RunError(
            f"Nothing to resume: {self.path} holds {' and '.join(results)}, and the state of that "
            f"run, {RESUME}/{STATE_FILE}, is missing. Put it back, replace the run with "
            f"overwrite=True (--overwrite), or choose another output folder."
        )

    def _replace(self, *, overwrite: bool) -> None:
        """Note what a new run replaces, if it may."""
        names = (*RUN_FILES, *COMMAND_FILES)
        present = [name for name in names if os.path.lexists(self.path / name)]
        if not overwrite:
            raise RunError(
                f"{self.path} already holds a run ({', '.join(present)}). Continue it with "
                f"resume=True (--resume), replace it with overwrite=True (--overwrite), or choose "
                f"another output folder."
            )
        self.replaced = present

    def _refuse_other_files(self) -> None:
        """Files of other kinds under the names that a run writes are never replaced."""
        folder = self.path
        if os.path.lexists(folder) and not os.path.isdir(folder):  # noqa: PTH112  # no errors on loops
            raise RunError(f"{folder} is no folder. Choose another output folder.")
        wrong = [
            name
            for name in RUN_FILES
            if os.path.lexists(folder / name) and (folder / name).is_dir() != (name in _FOLDERS)
        ]
        wrong += [f"{CHECKPOINT}/{name}" for name in foreign_files(self.checkpoint)]
        if wrong:
            raise RunError(
                f"{folder} holds other things under the names of a run ({', '.join(wrong)}), which "
                f"would be replaced. Choose another output folder."
            )

    def _keep_what_no_run_wrote(self, settings: Collection[str]) -> None:
        """Keep files of the user's; a run killed at its start leaves only settings and a log."""
        present = [name for name in COMMAND_FILES if (self.path / name).exists()]
        if CONFIG in present and _is_of_a_run(self.config, settings):
            return
        if self.log.is_file() and not _is_a_log(self.log):
            present.append(LOG)
        if present:
            raise RunError(
                f"{self.path} holds {' and '.join(present)}, which no run wrote, and a run would "
                f"replace them. Move them, replace them with --overwrite, or choose another "
                f"--output."
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder and remove what killed writers left there.

        The lock is taken once: a folder that its opener holds already stays with the opener.
        """
        if self._is_held:
            yield
            return
        with DirectoryLock(self.path):
            for place in (self.path, self.state):
                _temporary.sweep(place, alone=True)
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def remove_replaced(self) -> None:
        """Remove the files of the former run, except the state, which the new run replaces."""
        for path in (self.path / name for name in self.replaced if name != RESUME):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_splits(self, id_name: str, parts: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Write which sample is in which part to ``splits.csv``.

        Parameters
        ----------
        id_name
            Name of the column of ids.
        parts
            Name of each part and the ids of its samples.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([escape(id_name), "split"])
        for name, ids in parts:
            writer.writerows([escape(i), name] for i in ids)
        write_text(self.path / SPLITS, text.getvalue())


def _has_content(path: Path) -> bool:
    """Return whether a file or folder of a run holds more than its beginning."""
    if path.is_dir():
        return any(path.iterdir())
    if path.name != HISTORY or not path.is_file():
        return os.path.lexists(path)
    with path.open("rb") as file:  # a header alone says nothing
        return len([line for _, line in zip(range(2), file, strict=False) if line.strip()]) > 1


def _is_of_a_run(path: Path, settings: Collection[str]) -> bool:
    """Return whether a file holds settings of a run and no others; older runs had fewer."""
    try:
        found = read_yaml(path).keys()
    except ConfigError:
        return False
    return {"output", "backbone", "seed"} <= found <= set(settings)


def _is_a_log(path: Path) -> bool:
    """Return whether a file begins as the log of a run does; an empty one may."""
    with path.open("rb") as file:
        start = file.readline(200)
    return not start or _LOG_LINE.match(start) is not None
