"""Where commands write: never over what they read, and over older results only when asked to."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from molfun._io import disk_errors, is_within, same_file
from molfun._paths import as_path
from molfun.cli.tables import structures_path
from molfun.config import Settings, read_yaml
from molfun.data.feature_files import FEATURE_SUFFIXES
from molfun.data.structures import CIF_SUFFIXES, PDB_SUFFIXES
from molfun.errors import ConfigError, RunError
from molfun.models import run_folder
from molfun.sample import ALIGNMENT_SUFFIXES

CONFIG, SPLITS, LOG = "config.yaml", "splits.csv", "run.log"
PREDICTIONS = ("predictions_val.csv", "predictions_test.csv")
OTHERS = (
    *(CONFIG, SPLITS, *PREDICTIONS),
    *(structures_path(Path(name)).name for name in PREDICTIONS),
)
"""What a command writes into the folder of a run, beside what `fit` does and the log."""
READ_FROM = {
    "--pdbs": (*PDB_SUFFIXES, *CIF_SUFFIXES),
    "--features": FEATURE_SUFFIXES,
    "--alignments": ALIGNMENT_SUFFIXES,
}
"""Endings of what is read from the folder of a flag."""
Inputs = Mapping[str, str | Sequence[str] | None]
"""Paths that a command reads, by the flag that names them."""


def check_output(
    output: str | Path, inputs: Inputs, *, overwrite: bool, beside: Sequence[Path] = ()
) -> Path:
    """The file to write, refused before anything is computed if it must not be written.

    Parameters
    ----------
    output
        What ``--output`` names.
    inputs
        What the command reads.
    overwrite
        Whether an older file may be replaced.
    beside
        Further files that are written with it, under names derived from its own.

    Raises
    ------
    ConfigError
        If a file to write is one of the inputs, lies in an input checkpoint, or is a folder.
    RunError
        If it exists and replacing it was not asked for.
    """
    path = as_path(output)
    files = [path, *beside]
    for file in files:
        refuse_inputs(file, inputs)
        if file.is_dir():
            raise ConfigError(f"--output must name a file, and {file} is a folder.")
    present = [str(file) for file in files if os.path.lexists(file)]
    if present and not overwrite:
        raise RunError(
            f"{' and '.join(present)} exist{'s' * (len(present) == 1)}. Replace with --overwrite, "
            f"or choose another --output."
        )
    return path


def refuse_inputs(file: Path, inputs: Inputs) -> None:
    """Refuse to write a file that the command reads, by whatever name or link.

    Raises
    ------
    ConfigError
        Naming the flag of the input.
    """
    for flag, source in _paths(inputs):
        if same_file(file, source):
            raise ConfigError(
                f"{file} would be written and is the file of {flag}, which would be lost. Choose "
                f"another --output."
            )
        if source.is_dir() and is_within(file, source) and _is_read(file, flag):
            raise ConfigError(
                f"{file} would be written and lies in {source}, the folder of {flag}. Choose "
                f"another --output."
            )


def refuse_inputs_of_run(folder: Path, written: Iterable[str], inputs: Inputs) -> None:
    """Refuse a run whose files would take the place of what it reads.

    Parameters
    ----------
    folder
        Folder of the run.
    written
        Names of files and folders that the run writes into it.
    inputs
        What the run reads.

    Raises
    ------
    ConfigError
        Naming the flag of the input.
    """
    with disk_errors(folder), contextlib.suppress(FileNotFoundError):
        folder.stat()  # a name that cannot be fails here
    for name in written:
        path = folder / name
        for flag, source in _paths(inputs):
            if same_file(path, source) or (path.is_dir() and is_within(source, path)):
                raise ConfigError(
                    f"The run would write {path}, and {source} is what {flag} reads. Choose "
                    f"another --output, or copy the file elsewhere."
                )


def _is_read(file: Path, flag: str) -> bool:
    """Whether a file in the folder of an input is, or would be, part of what is read."""
    if flag == "CHECKPOINT":
        return True  # a file more, and the checkpoint is no longer what its manifest says
    name = file.name.lower().removesuffix(".gz")
    return os.path.lexists(file) and name.endswith(READ_FROM.get(flag, ()))


def _paths(inputs: Inputs) -> Iterator[tuple[str, Path]]:
    for flag, given in inputs.items():
        for path in [given] if isinstance(given, str) else given or ():
            yield flag, as_path(path)


def files_of_a_run(
    folder: Path, settings: type[Settings], *, resume: bool, overwrite: bool
) -> list[str]:
    """Files of a former run that the new one may replace.

    Parameters
    ----------
    folder
        Folder of the run.
    settings
        Kind of the settings in its ``config.yaml``.
    resume, overwrite
        Whether the run in it is continued, or may be replaced.

    Raises
    ------
    RunError
        If there are any, and neither is it continued nor was replacing asked for; or if files that
        no run wrote have names that a run writes.
    """
    replaced = run_folder.prepare(
        folder,
        resume=resume,
        overwrite=overwrite,
        others=OTHERS,
        hint="Continue it with --resume, replace it with --overwrite, or choose another --output.",
    )
    if not (replaced or resume or overwrite):
        _keep_what_no_run_wrote(folder, settings)
    return replaced


def _keep_what_no_run_wrote(folder: Path, settings: type[Settings]) -> None:
    """A run that was killed at its start leaves settings and a log; a file of the user's stays."""
    present = [name for name in OTHERS if (folder / name).exists()]
    if CONFIG in present and _is_of_a_run(folder / CONFIG, settings):
        return
    if (folder / LOG).is_file() and not _is_a_log(folder / LOG):
        present.append(LOG)
    if present:
        raise RunError(
            f"{folder} holds {' and '.join(present)}, which no run wrote, and a run would replace "
            f"them. Move them, replace them with --overwrite, or choose another --output."
        )


def _is_of_a_run(path: Path, settings: type[Settings]) -> bool:
    """Whether a file holds all settings of a run, and no others; older versions had fewer."""
    try:
        found = read_yaml(path).keys()
    except ConfigError:
        return False
    return {"output", "backbone", "seed"} <= found <= settings.model_fields.keys()


_LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")


def _is_a_log(path: Path) -> bool:
    """Whether a file begins as the log of a run does; an empty one may."""
    with path.open("rb") as file:
        start = file.readline(200)
    return not start or _LOG_LINE.match(start) is not None
