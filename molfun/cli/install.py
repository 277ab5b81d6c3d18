"""Install the openfold package without compiling anything: ``molfun install openfold``.

The package index holds openfold 0.0.1 as a source archive only. Its ``setup.py`` imports a module
that is not in the archive (``scripts.utils``) and builds a CUDA extension, which fails wherever
nvcc, the C++ compiler and torch do not agree. Molfun replaces the kernels of that extension, so
the Python files alone are installed::

    pip install 'molfun[openfold]'
    molfun install openfold
    molfun install openfold --from https://github.com/aqlaboratory/openfold.git

An openfold that is already installed, 0.0.1 or newer, is not touched unless ``--force`` is given.
The dependencies of openfold are Molfun's extra ``openfold``; nothing else is installed or changed.
Neither version ships ``resources/stereo_chemical_props.txt``, which only the structural
violation losses read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun.cli.command_settings import InstallSettings
from molfun.cli.console import say
from molfun.errors import MolfunError

VERSION = "0.0.1"
SHA256 = "d709aa2647b9e15fd4da42dfc3dbe9fc7310c42bc01bd0b4f5600eb39edef8f8"
"""Checksum of openfold-0.0.1.tar.gz; pip compares it before any code of the archive runs."""

_QUERY = """
import importlib.metadata
try:
    print(importlib.metadata.version("openfold"))
except importlib.metadata.PackageNotFoundError:
    pass
"""

_SETUP = """
from setuptools import find_packages, setup

setup(
    name="openfold",
    version="{version}",
    description="A PyTorch reimplementation of AlphaFold 2 (Python files only)",
    license="Apache-2.0",
    packages=find_packages(include=["openfold", "openfold.*"]),
    package_data={{"openfold": ["resources/stereo_chemical_props.txt"]}},
)
"""

# Stubs of the modules that the archive's setup.py imports: pip runs it once to read the metadata.
_BUILD_HELPERS = {
    "scripts/__init__.py": "",
    "scripts/utils.py": """
        def get_nvidia_cc():
            return None, ""
    """,
    "torch/__init__.py": "",
    "torch/utils/__init__.py": "",
    "torch/utils/cpp_extension.py": """
        from setuptools import Extension as CppExtension, Extension as CUDAExtension
        from setuptools.command.build_ext import build_ext as BuildExtension

        CUDA_HOME = None
    """,
}


class InstallError(MolfunError):
    """The package was not installed; the text is one line with the reason and a remedy."""


def left_alone(installed: str | None, *, force: bool) -> str | None:
    """Return the message that nothing has to be done, or None if openfold has to be installed.

    Examples
    --------
    >>> left_alone("2.2.0", force=False)
    'openfold 2.2.0 is already installed; left alone'
    >>> left_alone("2.2.0", force=True), left_alone(None, force=False)
    (None, None)
    """
    if installed is None or force:
        return None
    return f"openfold {installed} is already installed; left alone"


def reason(output: str) -> str:
    r"""Return the line that explains a failure: the last one with an error, or the last of all.

    Examples
    --------
    >>> reason("Collecting openfold\nERROR: No matching distribution found\n\nA new pip is out")
    'No matching distribution found'
    >>> reason("fatal: repository not found\n")
    'repository not found'
    >>> reason("")
    'no message'
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error|fatal|\w*Error\b", line, re.IGNORECASE)]
    chosen = (errors or lines or ["no message"])[-1]
    return re.sub(r"^(?:error|fatal):\s*", "", chosen, flags=re.IGNORECASE)


def run(command: Sequence[str | Path], *, cwd: Path, what: str, remedy: str, **env: str) -> str:
    """Run a command in `cwd` and return its output.

    Raises
    ------
    InstallError
        If the command is missing or fails: ``what failed (reason). remedy``.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise InstallError(f"{what} failed ({command[0]}: {error.strerror}). {remedy}") from error
    if done.returncode:
        raise InstallError(f"{what} failed ({reason(done.stdout + done.stderr)}). {remedy}")
    return done.stdout.strip()


def installed_version(python: str, cwd: Path) -> str | None:
    """Return the version of openfold that `python` imports, or None."""
    version = run(
        [python, "-c", _QUERY],
        cwd=cwd,
        what=f"Asking {python} for its packages",
        remedy="Pass a working interpreter with --python.",
    )
    return version or None


def download(python: str, folder: Path) -> Path:
    """Download the archive of openfold 0.0.1 into `folder`, and return its path."""
    helpers = folder / "helpers"
    for name, text in _BUILD_HELPERS.items():
        (helpers / name).parent.mkdir(parents=True, exist_ok=True)
        (helpers / name).write_text(textwrap.dedent(text))
    wanted = folder / "wanted.txt"
    wanted.write_text(f"openfold=={VERSION} --hash=sha256:{SHA256}\n")
    # `download` and not `install`: the archive's own setup.py would compile the CUDA extension
    pip = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    run(
        [*pip, "--no-build-isolation", "--dest", folder, "--requirement", wanted],
        cwd=folder,
        what=f"Download of openfold {VERSION}",
        remedy="Check pip, its index and setuptools, or pass --from a checkout of openfold.",
        PYTHONPATH=str(helpers),
    )
    return folder / f"openfold-{VERSION}.tar.gz"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive into `folder` and return the one folder that it holds.

    Raises
    ------
    InstallError
        If a member would land outside of `folder`, or the file is no such archive.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InstallError(f"Python {sys.version.split()[0]} cannot unpack safely. Use 3.11.4 on.")
    try:
        with tarfile.open(archive) as tar:
            # refuses absolute paths, links that leave the folder, and device files (PEP 706)
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(
            f"{archive.name} was refused ({error}). Delete pip's cache and try again."
        ) from error
    return _only_folder(folder, archive.name)


def _only_folder(folder: Path, name: str) -> Path:
    entries = sorted(folder.iterdir())
    if len(entries) != 1 or not entries[0].is_dir():
        raise InstallError(
            f"{name} holds {len(entries)} entries at its top, not one folder. "
            f"Install a checkout of openfold with --from."
        )
    return entries[0]


def split_reference(source: str) -> tuple[str, str | None]:
    """Split ``URL@tag`` of a git source; a leading ``git+`` is dropped.

    Examples
    --------
    >>> split_reference("git+https://github.com/aqlaboratory/openfold.git@v2.2.0")
    ('https://github.com/aqlaboratory/openfold.git', 'v2.2.0')
    >>> split_reference("git@github.com:aqlaboratory/openfold.git")
    ('git@github.com:aqlaboratory/openfold.git', None)
    """
    match = re.fullmatch(r"(?:git\+)?(.+?)(?:@([^@/:]+))?", source)
    return (match[1], match[2]) if match else (source, None)


def checkout(source: str, folder: Path) -> Path:
    """Return a folder with openfold's files: `source` itself, or its clone below `folder`."""
    local = Path(source).expanduser().resolve()
    if (local / "openfold" / "__init__.py").is_file():
        return local
    url, reference = split_reference(str(local) if local.is_dir() else source)
    branch = ["--branch", reference] if reference else []
    clone = folder / "clone"
    run(
        ["git", "clone", "--quiet", "--depth=1", *branch, "--", url, clone],
        cwd=folder,
        what=f"Clone of {source}",
        remedy="Pass --from a folder that holds openfold/__init__.py, or the URL of a repository.",
        GIT_TERMINAL_PROMPT="0",  # a wrong URL of a host with logins would wait for a password
    )
    return clone


def declared_version(tree: Path) -> str:
    """Return the version that a source tree declares in ``setup.py`` or ``pyproject.toml``.

    Raises
    ------
    InstallError
        If there is none.
    """
    for name in ("setup.py", "pyproject.toml"):
        text = (tree / name).read_text() if (tree / name).is_file() else ""
        match = re.search(r"""^\s*version\s*=\s*["']([\w.+!-]+)["']""", text, re.MULTILINE)
        if match:
            return match[1]
    raise InstallError(
        f"{tree} declares no version in setup.py or pyproject.toml. "
        f"Pass --from the top folder of a checkout of openfold."
    )


def strip_build(tree: Path, folder: Path) -> Path:
    """Copy the Python package of `tree` next to a ``setup.py`` that compiles nothing.

    Raises
    ------
    InstallError
        If `tree` holds no package openfold.
    """
    if not (tree / "openfold" / "__init__.py").is_file():
        raise InstallError(f"{tree} holds no package openfold. Pass --from a checkout of it.")
    plain = folder / "plain"
    # no sources of the CUDA extension, and no build of it for another Python
    ignore = shutil.ignore_patterns("__pycache__", "csrc", "*.so")
    shutil.copytree(tree / "openfold", plain / "openfold", ignore=ignore)
    for licence in tree.glob("LICENSE*"):
        shutil.copy2(licence, plain)
    (plain / "setup.py").write_text(_SETUP.format(version=declared_version(tree)).lstrip())
    return plain


def install(python: str, plain: Path, cwd: Path) -> None:
    """Install the folder made by `strip_build` into the environment of `python`."""
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(
        [*pip, "--force-reinstall", plain],
        cwd=cwd,
        what="Installing openfold",
        remedy=f"Check that {python} may write to its environment and has setuptools>=77.",
    )
    run(
        [python, "-c", "import openfold.resources"],
        cwd=cwd,
        what="Importing the openfold just installed",
        remedy="Remove it (pip uninstall openfold) and install it again.",
    )


def provide(python: str, *, source: str | None = None, force: bool = False) -> str:
    """Make sure that `python` has openfold, and return one line on what was done.

    Parameters
    ----------
    python
        Interpreter of the environment to install into: a path, or a name on the PATH.
    source
        Checkout or git URL (``URL@tag`` for one release); None for the package index.
    force
        Install even if a version is there.

    Raises
    ------
    InstallError
        If openfold cannot be installed.
    """
    start, python = time.monotonic(), _absolute(python)
    with tempfile.TemporaryDirectory(prefix="openfold-") as name:
        folder = Path(name)
        message = left_alone(installed_version(python, folder), force=force)
        if message:
            return message
        if source is None:
            (folder / "source").mkdir()
            tree, origin = unpack(download(python, folder), folder / "source"), "the package index"
        else:
            tree, origin = checkout(source, folder), source
        install(python, strip_build(tree, folder), folder)
        version = installed_version(python, folder)
    return f"openfold {version} installed from {origin} in {time.monotonic() - start:.0f} s"


def openfold(given: Mapping[str, Any]) -> None:
    """Install openfold for the interpreter of a command."""
    wanted = InstallSettings.build(given, source="command line")
    python = wanted.python or sys.executable
    say(provide(python, source=wanted.source, force=wanted.force))


def _absolute(python: str) -> str:
    """Return the absolute path of an interpreter, from a name on PATH or a relative path."""
    return os.path.abspath(shutil.which(python) or python)  # noqa: PTH100  resolve() leaves a venv
