"""Python processes that start with torch and the project already imported.

A new interpreter takes some six seconds of processor time to import what a fit needs. Tests that
kill a process, or compare one with another, need a process of their own but no cold start: theirs
is a ``fork`` of a server (`multiprocessing`'s) which has imported everything and done nothing else.
Tests of the start itself use `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["warm_imports"])


def _start_server() -> None:
    """Start the server if it does not run yet, with the folder of this file on its path."""
    # Python 3.11 does not give it `sys.path`
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before] if before else [here])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Process:
    """A program in the background, with the methods of `subprocess.Popen` that tests use.

    Parameters
    ----------
    command
        Arguments of an interpreter: ``-m MODULE``, ``-c CODE`` or a script, then the program's.
    cwd, env
        As for `subprocess.Popen`; entries of ``PYTHONPATH`` come first on the child's path.
    output
        Folder for the files ``out`` and ``err`` with what the program says.
    """

    def __init__(
        self,
        *command: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        output: str | Path | None = None,
    ) -> None:
        self.args = [str(part) for part in command]
        self._folder = None if output else tempfile.TemporaryDirectory(prefix="molfun-warm-")
        self._output = Path(output or self._folder.name)  # type: ignore[union-attr]
        self._output.mkdir(parents=True, exist_ok=True)
        self._last: dict[str, str] = {}
        self._process = _CONTEXT.Process(
            target=_main,
            args=(self.args, str(cwd or Path.cwd()), dict(env or os.environ), str(self._output)),
        )
        _start_server()
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stdout(self) -> str:
        """Return what the program has printed so far."""
        return self._said("out")

    def stderr(self) -> str:
        return self._said("err")

    def _said(self, name: str) -> str:
        file = self._output / name
        return file.read_text() if file.exists() else self._last.get(name, "")

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code; minus the number of the signal that ended the program."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self._process.kill()
        self._process.join()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._last = {name: self._said(name) for name in ("out", "err")}
        if self._folder is not None:
            self._folder.cleanup()


def run(
    *command: object, check: bool = False, timeout: float = 300, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end: `subprocess.run` with captured text."""
    with Process(*command, **settings) as process:
        code = process.wait(timeout)
        done = subprocess.CompletedProcess(process.args, code, process.stdout(), process.stderr())
    if check and code:
        raise AssertionError(f"exit code {code}\n{done.stdout}{done.stderr}")
    return done


def _forget_packages() -> None:
    """Clear what the registries found before the path of this process was set."""
    from molfun import registry

    registry._installed.cache_clear()
    for each in vars(registry).values():
        if isinstance(each, registry.Registry):
            each._scanned = False


def _main(command: list[str], cwd: str, env: dict[str, str], output: str) -> None:
    """Turn the fork into what a new interpreter is, and run the program."""
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, standard in (("out", 1), ("err", 2)):
        file = os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, standard)
        os.close(file)
    # as a new interpreter has them: the server's belong to whatever started it
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", 1)))
    _forget_packages()
    sys.path[:0] = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first, rest = command[0], command[1:]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
