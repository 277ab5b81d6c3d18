"""Check paths that users give."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from molfun.errors import ConfigError

_ADVICE = {
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A symbolic link leads back to itself: remove it, or choose another path.",
    errno.EACCES: "Choose a path in a folder that you may enter.",
}
"""Advice for paths that the system refuses; other errors are left to whoever opens the path."""

_SHOWN = 120
"""Number of characters of a path shown in a message."""


def as_path(given: object) -> Path:
    """Return a user's path with ``~`` expanded, if a file or folder of that name is possible.

    It need not exist. The caller can then use ``is_file`` and ``exists``, which would raise for an
    impossible name.

    Raises
    ------
    ConfigError
        If it is empty, not a text or path, or impossible: with an unknown user or a NUL character,
        too long, or through a loop of links or a folder without permission to enter.

    Examples
    --------
    >>> as_path("data/train.csv").name
    'train.csv'
    >>> as_path(5)
    Traceback (most recent call last):
    molfun.errors.ConfigError: A path must be a text or a pathlib.Path, got 5.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else given
    if not isinstance(text, str):
        raise ConfigError(f"A path must be a text or a pathlib.Path, got {given!r:.{_SHOWN}}.")
    if not text:
        raise ConfigError("A path is empty. Give the name of a file or folder.")
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
    try:
        path = Path(text).expanduser()
        # asks the system, which knows its own limits on names, links and permissions
        path.stat()
    except RuntimeError as error:  # raised by expanduser
        raise ConfigError(
            f"Cannot use the path {shown}: there is no user or home folder of that name. Write "
            f"the whole path, or ./ before a name that begins with ~."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"Cannot use the path {shown!r}: it holds a character that no file name can have. "
            f"Write it without."
        ) from error
    except OSError as error:
        if error.errno in _ADVICE:
            raise ConfigError(
                f"Cannot use the path {shown}: {error.strerror}. {_ADVICE[error.errno]}"
            ) from error
    return path
