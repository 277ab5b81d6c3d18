"""Check output paths: a command never overwrites its inputs, and older results only if asked to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from molfun._io import disk_errors, is_within, same_file
from molfun._paths import as_path
from molfun.cli.console import hush, is_first_process, set_up_logging
from molfun.data.feature_files import FEATURE_SUFFIXES
from molfun.data.structures import CIF_SUFFIXES, PDB_SUFFIXES
from molfun.errors import ConfigError, RunError
from molfun.runs.folder import RunFolder
from molfun.sample import ALIGNMENT_SUFFIXES

READ_FROM = {
    "--pdbs": (*PDB_SUFFIXES, *CIF_SUFFIXES),
    "--features": FEATURE_SUFFIXES,
    "--alignments": ALIGNMENT_SUFFIXES,
}
"""Endings of the files that are read from the folder of a flag."""
Inputs = Mapping[str, str | Sequence[str] | None]
"""Paths that a command reads, by the flag that names them."""


def check_output(
    output: str | Path, inputs: Inputs, *, overwrite: bool, beside: Sequence[Path] = ()
) -> Path:
    """Return the path to write, or refuse it before anything is computed.

    Parameters
    ----------
    output
        Value of ``--output``.
    inputs
        Paths that the command reads.
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
    if path.is_dir():
        raise ConfigError(f"--output must name a file, and {path} is a folder.")
    for file in filter(_holds_others, beside):
        raise ConfigError(
            f"{file} would be written and is a folder with other files. Choose another --output."
        )
    # lexists: a broken link is a name in use as well
    present = [str(file) for file in files if os.path.lexists(file)]
    if present and not overwrite:
        raise RunError(
            f"{' and '.join(present)} exist{'s' * (len(present) == 1)}. Replace with --overwrite, "
            f"or choose another --output."
        )
    return path


def check_new_folder(output: str | Path, inputs: Inputs, *, overwrite: bool) -> Path:
    """Return the folder to write, or refuse it before anything is computed.

    Raises
    ------
    ConfigError
        If it is an input, holds one or lies in one, or is a file.
    RunError
        If it exists and replacing it was not asked for.
    """
    path = as_path(output)
    for flag, source in _paths(inputs):
        same = same_file(path, source)
        if same or is_within(source, path) or (source.is_dir() and is_within(path, source)):
            raise ConfigError(
                f"{path} would be written, and {source} is what {flag} reads. Choose another "
                f"folder."
            )
    if path.is_file():
        raise ConfigError(f"{path} is a file, and a folder is to be written. Choose another name.")
    if os.path.lexists(path) and not overwrite:
        raise RunError(f"{path} exists. Replace with --overwrite, or choose another folder.")
    return path


def _holds_others(folder: Path) -> bool:
    """Return whether it is a folder with other files than predicted structures."""
    return folder.is_dir() and any(one.suffix != ".cif" for one in folder.iterdir())


def refuse_inputs(file: Path, inputs: Inputs) -> None:
    """Refuse to write a file that the command reads, under any name or link.

    Raises
    ------
    ConfigError
        If it does; the text has the flag of the input.
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
    """Refuse a run whose files would overwrite its inputs.

    Parameters
    ----------
    folder
        Folder of the run.
    written
        Names of files and folders that the run writes into it.
    inputs
        Paths that the run reads.

    Raises
    ------
    ConfigError
        If one would; the text has the flag of the input.
    """
    with disk_errors(folder), contextlib.suppress(FileNotFoundError):
        folder.stat()  # an impossible name (too long, a NUL) fails here, with a clear error
    for name in written:
        path = folder / name
        for flag, source in _paths(inputs):
            if same_file(path, source) or (path.is_dir() and is_within(source, path)):
                raise ConfigError(
                    f"The run would write {path}, and {source} is what {flag} reads. Choose "
                    f"another --output, or copy the file elsewhere."
                )


def _is_read(file: Path, flag: str) -> bool:
    """Return whether a file in the folder of an input is, or would be, one that is read."""
    if flag == "CHECKPOINT":
        return True  # with one file more, a checkpoint no longer matches its manifest
    name = file.name.lower().removesuffix(".gz")
    return os.path.lexists(file) and name.endswith(READ_FROM.get(flag, ()))


def _paths(inputs: Inputs) -> Iterator[tuple[str, Path]]:
    for flag, given in inputs.items():
        for path in [given] if isinstance(given, str) else given or ():
            yield flag, as_path(path)


@contextlib.contextmanager
def opened_run(
    folder: RunFolder,
    written: Iterable[str],
    inputs: Inputs,
    *,
    settings: Collection[str],
    overwrite: bool,
    debug: bool,
) -> Iterator[None]:
    """Lock and check the folder of a run, and log into it, in the first of several processes.

    Parameters
    ----------
    folder
        Folder of the run.
    written
        Names of files and folders that the run writes.
    inputs
        Paths that the run reads.
    settings
        Names of the settings in its ``config.yaml``.
    overwrite
        Whether a run in the folder may be replaced.
    debug
        Whether the terminal shows everything that is logged.

    Raises
    ------
    ConfigError
        If the run would overwrite its inputs.
    RunError
        If the folder is in use, or a run may not start or resume there.
    """
    # before the lock, which makes the folder: a refused run leaves nothing behind
    refuse_inputs_of_run(folder.path, written, inputs)
    if not is_first_process():
        hush()
        yield
        return
    # locked before the checks, so that no other process starts a run in between
    with folder.held():
        folder.check(overwrite=overwrite, settings=settings)
        with disk_errors(folder.path):
            set_up_logging(str(folder.log), debug=debug)
        yield
