"""Folder of a run: names of its files, its lock, and the check whether a run may start in it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, ClassVar, Self

from molfun import _temporary
from molfun._io import disk_errors, write_text
from molfun._paths import as_path
from molfun.config import read_yaml
from molfun.data.cells import escape
from molfun.errors import ConfigError, RunError
from molfun.registry import DATASETS
from molfun.runs.checkpoint import foreign_files
from molfun.runs.resume import STATE_FILE

CHECKPOINT, RESUME, HISTORY, WEIGHTS = (
    "checkpoint", "resume", "history.csv", "weights.safetensors",
)  # fmt: skip
RECONSTRUCTIONS = "reconstructions.csv"
RUN_FILES = (CHECKPOINT, RESUME, HISTORY, WEIGHTS, RECONSTRUCTIONS)
"""Files and folders that `fit` and `pretrain` write into the folder of a run."""
CONFIG, SPLITS, LOG, CACHE = "config.yaml", "splits.csv", "run.log", "cache"
LOGGERS, LOGS = "loggers.json", "logs"
"""Ids of the runs of trackers, and folder of their files."""
PREDICTIONS = ("predictions_val.csv", "predictions_test.csv")
OUT_OF_FOLD, FOLDS, CV_SUMMARY = "out_of_fold.csv", "folds.csv", "cv.json"
"""Results of a cross-validation, in its folder."""
SCHEMA = "config.schema.json"
EVALUATION = "evaluation.json"
REPORT, PROVENANCE = "report.html", "provenance.json"
ATTRIBUTIONS = "attributions.csv"
_FOLDERS = (CHECKPOINT, RESUME)
# a log is recognised by the time stamp of its first line, so that no other run.log is replaced
_LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")


def command_files() -> tuple[str, ...]:
    """List the files that a command writes in addition, apart from log and cache."""
    beside = (
        file.name
        for kind in DATASETS.classes()  # when asked, so that a kind of a plugin is among them
        for table in PREDICTIONS
        for file in kind().files_beside(Path(table))
    )
    return (
        CONFIG,
        SCHEMA,
        SPLITS,
        *PREDICTIONS,
        EVALUATION,
        REPORT,
        PROVENANCE,
        ATTRIBUTIONS,
        *beside,
    )


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
    reconstructions : Path
        Series with what pre-training hid of them and predicted.
    config, log, evaluation : Path
        Settings, log and verdict of a command.
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
        self.reconstructions = self.path / RECONSTRUCTIONS
        self.config, self.log = self.path / CONFIG, self.path / LOG
        self.evaluation = self.path / EVALUATION
        self.resume = resume
        self.replaced: list[str] = []
        self._is_checked = self._is_held = False

    @classmethod
    def of(cls, place: str | Path | RunFolder | None, *, resume: bool) -> RunFolder | None:
        """Return the folder at a path; None for None.

        Raises
        ------
        ConfigError
            If a run is to be resumed and no folder is named.
        """
        if place is None and resume:
            raise ConfigError("resume=True needs output_dir, the folder of the run to continue.")
        return place if isinstance(place, RunFolder | None) else cls(place, resume=resume)

    def check(self, *, overwrite: bool, settings: Collection[str] = ()) -> Self:
        """Refuse a folder in which the run would overwrite results, or has nothing to resume.

        Only the first call checks. A folder whose run was killed before its first state holds
        nothing worth keeping, so a new run starts there as in an empty folder.

        Parameters
        ----------
        overwrite
            Whether a run in the folder may be replaced.
        settings
            Names of the settings in ``config.yaml``, if the run writes one. Then a user's own files
            under the names of `command_files()` are protected as well.

        Raises
        ------
        RunError
            If the folder holds a run that is neither resumed nor replaced, if the run to resume has
            lost its state, or if other files have the names of a run's files.
        """
        if self._is_checked:
            return self
        self._is_checked = True
        self._refuse_other_files()
        # lexists: a dangling link counts, since its target may be on a disk that is not mounted
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
        return [n for n in RUN_FILES if n != RESUME and _has_content(self.path / n)]

    def _lost_state(self, results: Sequence[str]) -> RunError:
        return RunError(
            f"Nothing to resume: {self.path} holds {' and '.join(results)}, and the state of that "
            f"run, {RESUME}/{STATE_FILE}, is missing. Put it back, replace the run with "
            f"overwrite=True (--overwrite), or choose another output folder."
        )

    def _replace(self, *, overwrite: bool) -> None:
        """Note the files that a new run replaces; refuse without `overwrite`."""
        names = (*RUN_FILES, *command_files())
        present = [name for name in names if os.path.lexists(self.path / name)]
        if not overwrite:
            raise RunError(
                f"{self.path} already holds a run ({', '.join(present)}). Continue it with "
                f"resume=True (--resume), replace it with overwrite=True (--overwrite), or choose "
                f"another output folder."
            )
        self.replaced = present

    def _refuse_other_files(self) -> None:
        """Refuse to replace things under a run's names that no run wrote, even with overwrite."""
        folder = self.path
        if os.path.lexists(folder) and not os.path.isdir(folder):  # noqa: PTH112  # no errors on loops
            raise RunError(f"{folder} is not a folder. Choose another output folder.")
        wrong = [
            name
            for name in RUN_FILES
            if os.path.lexists(folder / name) and (folder / name).is_dir() != (name in _FOLDERS)
        ]
        wrong += [f"{CHECKPOINT}/{name}" for name in foreign_files(self.checkpoint)]
        if wrong:
            raise RunError(
                f"{folder} holds other files or folders under the names of a run "
                f"({', '.join(wrong)}), which would be replaced. Choose another output folder."
            )

    def _keep_what_no_run_wrote(self, settings: Collection[str]) -> None:
        """Refuse to replace a user's own files, as told from those of a run killed at its start."""
        present = [name for name in command_files() if (self.path / name).exists()]
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
        """Lock the folder for a ``with`` block, and remove temporary files of killed writers.

        Nested calls do nothing: a command locks the folder, and `Job.run` enters it again.
        """
        if self._is_held:
            yield
            return
        with DirectoryLock(self.path):
            # under the lock no other writer is alive, so every temporary file is a leftover
            for place in (self.path, self.state):
                _temporary.sweep(place, alone=True)
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def remove_replaced(self) -> None:
        """Remove the files of the former run, except its state, which the new run replaces itself.

        As long as the old state is there, a killed process leaves a folder that is one run.
        """
        for path in (self.path / name for name in self.replaced if name != RESUME):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_splits(self, id_name: str, parts: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Write ``splits.csv``: the part (train, validation, test) of each sample.

        Parameters
        ----------
        id_name
            Name of the column of ids.
        parts
            Name of each part and the ids of its samples.
        """
        # in memory first, so that the file is written in one atomic step
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([escape(id_name), "split"])
        for name, ids in parts:
            writer.writerows([escape(i), name] for i in ids)
        write_text(self.path / SPLITS, text.getvalue())


def _has_content(path: Path) -> bool:
    """Return whether a file or folder of a run holds results."""
    if path.is_dir():
        return any(path.iterdir())
    if path.name != HISTORY or not path.is_file():
        return os.path.lexists(path)
    with path.open("rb") as file:  # the header alone is written before the first epoch ends
        # two lines suffice: header and one epoch
        return len([line for _, line in zip(range(2), file, strict=False) if line.strip()]) > 1


def _is_of_a_run(path: Path, settings: Collection[str]) -> bool:
    """Return whether a file holds settings of a run and nothing else (older runs had fewer)."""
    try:
        found = read_yaml(path).keys()
    except ConfigError:
        return False
    # these three are in every config.yaml of a run; a user's own file lacks one or has others
    return {"output", "backbone", "seed"} <= found <= set(settings)


def _is_a_log(path: Path) -> bool:
    """Return whether a file begins like the log of a run, or is empty."""
    with path.open("rb") as file:
        start = file.readline(200)
    return not start or _LOG_LINE.match(start) is not None


# Lock


class DirectoryLock:
    """Context that holds the lock of a run folder.

    The lock is the kernel's (``lockf``, POSIX record locks). It ends with the process in whatever
    way that ends, and forked loader workers do not inherit it, unlike ``flock``. A lock file left
    by a dead process is taken over.
    """

    _taken: ClassVar[set[str]] = set()

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / ".lock"
        self._place = os.path.realpath(self.path)  # unlike Path.resolve, no error on link loops
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        folder = self.path.parent
        if os.path.lexists(folder) and not os.path.isdir(folder):  # noqa: PTH112  # no error on loops
            raise RunError(f"{folder} is not a folder. Choose another output folder.")
        if self._place in self._taken:
            # a POSIX lock does not exclude its own process, and closing any handle would release it
            raise self._in_use(os.getpid())
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # "a+" keeps the content: it names the holder, should the lock be taken
            file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise self._in_use(holder) from None
        # the file stays when the lock ends: removing it could remove that of the next holder
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        self._taken.add(self._place)
        return self

    def _in_use(self, holder: int | str) -> RunError:
        return RunError(
            f"{self.path.parent} is in use by process {holder}. Wait for it, stop it, or choose "
            f"another output folder."
        )

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._taken.discard(self._place)
            self._file.close()
            self._file = None
