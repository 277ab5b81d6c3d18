"""Paths as users give them."""

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
"""What to do about a path that the system refuses; any other error is left to who opens it."""

_SHOWN = 120
"""Characters of a path that a message repeats."""


def as_path(given: object) -> Path:
    """A path as it was given, with ``~`` expanded, if there can be a file or folder of that name.

    Whether there is one, and of which kind, is for the caller to find out: after this neither
    ``is_file`` nor ``exists`` fails.

    Raises
    ------
    ConfigError
        If it is empty, no text or path, or one that the system cannot have: of an unknown user,
        with a NUL, too long, through a loop of links or a folder that may not be entered.

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
        path.stat()
    except RuntimeError as error:  # of expanduser
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
