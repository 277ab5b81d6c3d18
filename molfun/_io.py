"""Atomic writes that survive a crash, and reads that cannot execute code.

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
import math
import os
import re
import resource
import shutil
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molfun import _seals, _temporary
from molfun._apart import TensorsApart
from molfun.errors import CheckpointError, MolfunError, RunError, UnsafeFileError
from molfun.text import first_line

if TYPE_CHECKING:
    import torch

MAX_INFLATION = 20
"""Largest ratio of unpacked to packed bytes accepted in a torch file. torch.save stores tensors
without compression, so an honest file has a ratio of 1."""

_FOREIGN = re.compile(r"GLOBAL|call reduce|unsupported class|Can only (?:build|create|set)")
"""Parts of the error texts of torch's restricted unpickler for objects not on its list."""


_ADVICE = {
    errno.EACCES: "Choose a folder you may write to.",
    errno.EPERM: "Choose a folder you may write to.",
    errno.EROFS: "Choose a folder you may write to.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A symbolic link leads back to itself: remove it, or choose another folder.",
    errno.EIO: "The disk or network drive failed. The previous version is intact; look at the "
    "system's log, or choose another folder.",
    errno.ESTALE: "The network drive has lost the file. Mount it again, or choose another folder.",
}
"""Advice for system errors on writing; for all others, another folder."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn system errors while writing `path` into a `RunError` of one line."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error
    except RuntimeError as error:
        # torch's writer reports a short write without an errno
        signs = ("unexpected pos", "file write failed", "iostream error")
        if isinstance(error, MolfunError) or not any(sign in str(error) for sign in signs):
            raise
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        code = errno.EFBIG if limited else errno.ENOSPC
        raise _cannot_write(path, OSError(code, os.strerror(code))) from error


def _cannot_write(path: Path, error: OSError) -> RunError:
    path = _temporary.final(path)
    if (no_room := _no_room(path, error.errno)) is not None:
        return RunError(f"{no_room} or choose another folder; the previous version is intact.")
    name = str(error.filename or path)
    where = "" if name == str(path) or name.endswith(".tmp") else f" ({name})"
    advice = _ADVICE.get(error.errno or 0, "Choose another folder.")
    return RunError(f"Cannot write {path}: {error.strerror or error}{where}. {advice}")


def _no_room(path: Path, code: int | None) -> str | None:
    """Return which kind of space ran out and how to get more; None for other errors."""
    if code == errno.ENOSPC:
        free = shutil.disk_usage(_existing(path)).free // 2**20
        return f"Disk full while writing {path} ({free} MB free). Free some space"
    if code == errno.EDQUOT:
        return f"Your disk quota is used up while writing {path}. Free some space"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = f"The file-size limit of {limit:,} bytes (ulimit -f)"
        who = "The file system" if limit == resource.RLIM_INFINITY else most
        return f"{who} does not allow a file as large as {path}. Raise the limit"
    return None


def _existing(path: Path) -> Path:
    """Return the nearest existing folder above `path`."""
    path = path.absolute()
    while not os.path.exists(path):  # noqa: PTH110  # no errors on names that cannot be
        path = path.parent
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is synced and renamed over `path`.

    A process killed at any moment leaves the old file or the new one, never a part. The next writer
    of `path` removes its temporary file.
    """
    path = Path(path)
    with disk_errors(path):
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # an impossible name fails now, not after hours of work
        path.parent.mkdir(parents=True, exist_ok=True)
        _temporary.sweep(path.parent, path.name)
        temporary = _temporary.new_file(path)
        try:
            yield temporary
            # content before the rename, else a power cut can leave an empty file under the name
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only the owner can read
            temporary.replace(path)
            _sync(path.parent)  # the rename itself is durable only with the folder
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON to `path` atomically; `finite` says what NaN becomes."""
    text = json.dumps(finite(content), indent=2, sort_keys=True, default=str, allow_nan=False)
    write_text(path, text + "\n")


def finite(content: Any) -> Any:
    """Return content for JSON, which has neither NaN nor infinity: they become null.

    Examples
    --------
    >>> finite({"r2": float("nan"), "bounds": (0.5, float("inf"))})
    {'r2': None, 'bounds': [0.5, None]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, list | tuple) else content


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Let one process at a time, of all machines that share the folder, write `path`.

    The others wait, and find it written. The lock is the kernel's, so it ends with its process.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("a")
    with file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on success it replaces `path`.

    On Linux the two folders are exchanged in one system call, so there is a complete folder at
    `path` at every moment. Leftovers of killed processes are removed.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        _temporary.sweep(path.parent, path.name)
        temporary = _temporary.new_folder(path)
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
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders: atomically where Linux can, else by renames."""
    # RENAME_EXCHANGE of renameat2(2), for which Python has no function; AT_FDCWD makes relative
    # paths relative to the working directory
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
    """Restore a folder that a process moved aside before it was killed between two renames."""
    if _aside(path).exists() and not path.exists():
        _aside(path).rename(path)


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths, after links, lead to one file, which need not exist yet."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
        return _real(one) == _real(other)
    except OSError:  # such as a name that is too long; whoever opens it reports that
        return False


def is_within(path: Path, folder: Path) -> bool:
    """Return whether a path, after links, is inside a folder or the folder itself."""
    return _real(path).is_relative_to(_real(folder))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_torch(
    path: str | Path,
    *,
    allow: Sequence[type] = (),
    advice: str = _seals.ADVICE,
    mmap: bool = False,
) -> Any:
    """Read a file of ``torch.save`` without running anything in it.

    Parameters
    ----------
    path
        The file.
    allow
        Further classes it may hold; they must not run code when they are created.
    advice
        Advice in the error for a damaged file.
    mmap
        Whether tensors stay in the file, mapped into memory; those of torch before 1.6 cannot.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or does not match the checksum it carries.
    UnsafeFileError
        If it holds anything but tensors and plain values, or inflates beyond `MAX_INFLATION`.
    """
    import torch

    path = _file(path)
    try:
        _seals.check_torch(path, advice)
        _refuse_bombs(path)
        with torch.serialization.safe_globals(list(allow)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles; our errors are clearer
            mapped = mmap and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
            f"{path} is damaged or not a torch file ({type(error).__name__}). {advice}"
        ) from error


def format_of(content: Any) -> int | str:
    """Return the format number in a file of `save_torch`, or the type name of another value there.

    A damaged file may hold a tensor in its place, which can be neither compared nor printed.
    """
    if not isinstance(content, dict):
        return type(content).__name__
    found = content.get("format")
    return found if type(found) is int else type(found).__name__


def _refuse_bombs(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    # 20 MB are harmless, whatever the ratio
    if unpacked > MAX_INFLATION * max(path.stat().st_size, 2**20):
        raise UnsafeFileError(
            f"Refused {path}: {path.stat().st_size:,} bytes on disk unpack to {unpacked:,}. "
            f"torch.save does not compress, so this file was made to exhaust memory."
        )


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113  # no errors on names that cannot be
        raise CheckpointError(f"No such file: {path}.")
    return path


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file is safetensors: by its content, or by its suffix if that is unclear.

    Files behind links (the blobs of Hugging Face, DVC and git-annex) have no suffix.
    """
    path = Path(path)
    with contextlib.suppress(OSError), path.open("rb") as file:
        # eight bytes hold the length of the header, which is a JSON object
        start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return True
        if start[:4] == b"PK\x03\x04":  # the archive that torch.save writes
            return False
    return path.suffix == ".safetensors"


def load_safetensors(
    path: str | Path,
    *,
    key: str = "",
    sealed: bool = False,
    advice: str = _seals.ADVICE,
    apart: bool = False,
) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        The file.
    key
        Key it was written with, see `save_safetensors`.
    sealed
        Whether to refuse a file without a checksum.
    advice
        Advice in the error for a damaged file.
    apart
        Whether each tensor has a mapping of the file of its own. Memory that was read then goes
        with its tensor, and not with the last one.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or does not match the checksum it carries.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _file(path)
    try:
        texts = read_metadata(path)
        tensors: Mapping[str, torch.Tensor] = TensorsApart(path) if apart else load_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {advice}") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}. {advice}") from error
    stored = texts.get(_seals.KEY)
    if stored is None and sealed:
        raise CheckpointError(f"{path} is damaged (checksum): it carries none. {advice}")
    if stored is not None and stored != _seals.digest_of(tensors, texts, key):
        raise _seals.damaged(path, advice)
    return dict(tensors)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = _file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}.") from error


def checksum_of(path: str | Path) -> str | None:
    """Return the checksum in a safetensors file, which is not verified here; None without one."""
    return read_metadata(path).get(_seals.KEY)


def is_sealed(path: str | Path) -> bool:
    """Return whether a torch file carries a checksum, which `load_torch` verifies."""
    return _seals.has_mark(_file(path))


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    key: str = "",
) -> str:
    """Write tensors as safetensors, atomically and with a checksum, and return the checksum.

    Equal content gives equal bytes. The checksum covers `key`, so a file read with another key
    counts as damaged: a cache entry that was renamed to another entry is noticed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    texts = dict(metadata or {})
    texts[_seals.KEY] = _seals.digest_of(plain, texts, key)
    path = Path(path)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=texts)
        except SafetensorError as error:
            raise _system_error(error, path) or error from error
        _seals.order_header(temporary)
    return texts[_seals.KEY]


def _system_error(error: Exception, path: Path) -> OSError | None:
    """Return the system error behind one of safetensors, whose text holds only its number."""
    match = re.search(r"os error (\d+)", str(error))
    if match is None:
        return None
    return OSError(int(match[1]), os.strerror(int(match[1])), str(path))


def save_torch(path: str | Path, content: Any) -> None:
    """Write `content` with ``torch.save``, atomically and with a checksum.

    Equal content gives equal bytes, whichever objects it is made of.
    """
    import torch

    with atomic_path(path) as temporary:
        # a file object: given a path, torch writes the temporary name into the archive
        with temporary.open("wb") as file:
            torch.save(_plain(content), file)
        _seals.seal_torch(temporary)


def _plain(content: Any) -> Any:
    """Return a copy in which no objects are shared except equal texts.

    Pickle writes an object that occurs twice only once, so bytes would depend on which objects are
    identical. A view of a tensor would be written with its whole storage.
    """
    import torch

    if type(content) in (dict, OrderedDict):
        return {_plain(key): _plain(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(map(_plain, content))
    if type(content) is str:
        return sys.intern(content)
    if isinstance(content, torch.Tensor):
        part = content.detach()
        whole = part.untyped_storage().nbytes() == part.numel() * part.element_size()
        return part if whole and part.is_contiguous() else part.contiguous().clone()
    return content
