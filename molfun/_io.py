"""Files that survive a crash and cannot bite: atomic writes, locks, checked reads.

No function here executes what it reads: torch files go through ``weights_only=True`` and are
measured before they are inflated.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from molfun.errors import CheckpointError, MolfunError, RunError, UnsafeFileError

if TYPE_CHECKING:
    import torch

MAX_INFLATION = 20
"""Largest ratio of unpacked to packed bytes accepted in a torch file. torch.save stores tensors
without compression, so an honest file has a ratio of 1."""

_FOREIGN = re.compile(r"GLOBAL|call reduce|unsupported class|Can only (?:build|create|set)")
"""What torch's restricted unpickler says of anything that is not on its list."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors on writing `path` into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path)).free // 2**20
            raise RunError(
                f"Disk full while writing {path} ({free} MB free). Free some space or choose "
                f"another folder; the previous version is intact."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(
                f"Cannot write {path}: {error.strerror}. Choose a folder you may write to."
            ) from error
        if isinstance(error, FileExistsError | NotADirectoryError | FileNotFoundError):
            raise RunError(
                f"Cannot write {path}: {error.strerror} ({error.filename}). Choose another folder."
            ) from error
        raise
    except RuntimeError as error:
        # torch's writer reports a short write without an errno
        signs = ("unexpected pos", "file write failed", "iostream error")
        if any(sign in str(error) for sign in signs):
            raise RunError(
                f"Disk full while writing {path}. Free some space or choose another folder; "
                f"the previous version is intact."
            ) from error
        raise


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced and renamed over `path`.

    A process killed at any moment leaves the old file or the new one, never a part.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; on success it takes the place of `path`.

    On Linux the two are exchanged in one system call, so there is a complete folder at `path`
    at every moment. Folders that earlier, killed processes left behind are swept.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        for stale in path.parent.glob(f".{path.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders atomically (Linux), else by two renames."""
    rename_exchange, at_fdcwd = 2, -100
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        code = libc.renameat2(
            at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), rename_exchange
        )
        if code == 0:
            return
    aside = _aside(old)
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def _recover(path: Path) -> None:
    """Put a folder back that a process killed between two renames had moved aside."""
    if _aside(path).exists() and not path.exists():
        _aside(path).rename(path)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever name or link; also one that is not there yet."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
        return _real(one) == _real(other)
    except OSError:  # such as a name that is too long; reading or writing it says so
        return False


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, or is it, links followed."""
    return _real(path).is_relative_to(_real(folder))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def sha256_of(path: str | Path) -> str:
    """Sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_torch(path: str | Path, *, allow: Sequence[type] = ()) -> Any:
    """Read a file of ``torch.save`` without running anything in it.

    Parameters
    ----------
    path
        The file.
    allow
        Further classes it may hold; only those that cannot run anything when they are made.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    UnsafeFileError
        If it holds anything but tensors and plain values, or inflates beyond `MAX_INFLATION`.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.")
    try:
        _refuse_bombs(path)
        with torch.serialization.safe_globals(list(allow)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's words on pickles; ours follow
            return torch.load(path, map_location="cpu", weights_only=True)
    except MolfunError:
        raise
    except Exception as error:  # damaged bytes can make the zip and pickle readers fail in any way
        if _FOREIGN.search(str(error)):
            raise UnsafeFileError(
                f"Refused {path}: it holds more than tensors and plain values, and reading it "
                f"could run code. Ask its author for safetensors."
            ) from error
        # torch's own text recommends weights_only=False, so it is not passed on
        raise CheckpointError(
            f"{path} is damaged or not a torch file ({type(error).__name__})."
        ) from error


def _refuse_bombs(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_INFLATION * max(path.stat().st_size, 2**20):
        raise UnsafeFileError(
            f"Refused {path}: {path.stat().st_size:,} bytes on disk unpack to {unpacked:,}. "
            f"torch.save does not compress, so this file was made to exhaust memory."
        )


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {_first_line(error)}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Texts that a safetensors file carries beside its tensors.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {_first_line(error)}") from error


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    path = Path(path)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:
            if "No space left" in str(error) or "File too large" in str(error):
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
            raise


def save_torch(path: str | Path, content: Any) -> None:
    """Write `content` with ``torch.save``, atomically."""
    import torch

    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class DirectoryLock:
    """Keep two processes out of one run directory.

    The lock is the kernel's (``lockf``), so it goes with the process however that ends, also where
    loader workers outlive it for a moment; a lock file left by a dead process is taken over.
    """

    _held: ClassVar[set[Path]] = set()

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / ".lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        if self.path.resolve() in self._held:
            return self  # this process has it already, further up the call stack
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunError(
                f"{self.path.parent} is in use by process {holder}. Wait for it, stop it, or "
                f"choose another output folder."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        self._held.add(self.path.resolve())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._held.discard(self.path.resolve())
            self._file.close()
            self._file = None
