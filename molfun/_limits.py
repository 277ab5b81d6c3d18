"""Limits that readers check before they allocate memory, and that a user can raise by name.

A reader declares its limit next to its code and checks it as soon as the size is known::

    MAX_BYTES = Limit("STRUCTURE_BYTES", 2**29)
    MAX_BYTES.check(path.stat().st_size, path)

The user raises it for one process with ``MOLFUN_MAX_STRUCTURE_BYTES=2G``; the error says so.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from molfun.errors import ConfigError, DataError, UnsafeFileError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = re.compile(r"(\d[\d_]{0,18})\s*([KMGT]?)I?B?", re.ASCII)
_RATIO_FROM = 2**24
"""Bytes that a file may always unpack to, whatever its ratio."""


@dataclass(frozen=True)
class Limit:
    """A limit of a reader.

    Parameters
    ----------
    name
        Name in capitals; the environment variable is ``MOLFUN_MAX_<name>``.
    default
        Limit if the variable is not set, large enough for every honest file.
    unit
        Unit in the plural, for the error.

    Examples
    --------
    >>> limit = Limit("EXAMPLE_ROWS", 1000, "rows")
    >>> limit.value, limit.variable
    (1000, 'MOLFUN_MAX_EXAMPLE_ROWS')
    >>> limit.check(1000, "a.csv")
    >>> limit.check(1001, "a.csv")
    Traceback (most recent call last):
    molfun.errors.UnsafeFileError: Refused a.csv: 1,001 rows are more than the 1,000 allowed. If you
    trust the file and have the memory, raise the limit: MOLFUN_MAX_EXAMPLE_ROWS=1001.
    """

    name: str
    default: int
    unit: str = "bytes"

    @property
    def variable(self) -> str:
        """Environment variable that sets the limit."""
        return f"MOLFUN_MAX_{self.name}"

    @property
    def value(self) -> int:
        """The current limit; the variable is read at each use, so that notebooks can set it.

        Raises
        ------
        ConfigError
            If the variable holds no whole number; K, M, G and T multiply by powers of 1024.
        """
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default
        match = _NUMBER.fullmatch(text.upper())
        if match is None:
            raise ConfigError(
                f"{self.variable} is {text!r}; give a whole number of {self.unit} such as "
                f"{self.default}, or with K, M or G such as 4G."
            )
        return int(match[1].replace("_", "")) * _UNITS[match[2]]

    def check(self, found: int, where: str | Path, *, advice: str = "") -> None:
        """Raise UnsafeFileError if `found` is above the limit; `advice` names another way out."""
        if found > self.value:
            raise self.error(where, found, advice=advice)

    def error(
        self, where: str | Path, found: int | None = None, *, advice: str = ""
    ) -> UnsafeFileError:
        """Return the error for a file above the limit; `found` is None if reading stopped there."""
        cap = self.value
        what = (
            f"it holds more than the {cap:,} {self.unit} allowed"
            if found is None
            else f"{found:,} {self.unit} are more than the {cap:,} allowed"
        )
        value = "..." if found is None else str(found)
        return UnsafeFileError(
            f"Refused {where}: {what}. {advice + ' ' if advice else ''}If you trust the file and "
            f"have the memory, raise the limit: {self.variable}={value}."
        )


def read_bytes(
    path: Path,
    limit: Limit,
    *,
    ratio: Limit | None = None,
    error: type[DataError] = DataError,
    advice: str = "",
) -> bytes:
    """Return the content of a file, unpacked if it is gzip by its first bytes or its name.

    Parameters
    ----------
    path
        A file that exists.
    limit
        Limit on the unpacked bytes.
    ratio
        Limit on unpacked per packed bytes, for formats that never compress well.
    error
        Class of the error for a damaged file.
    advice
        Another way out than to raise the limit, for the error.

    Raises
    ------
    UnsafeFileError
        If the file exceeds a limit; no more than the limit was read.
    DataError
        If the file cannot be read or is damaged gzip, as `error`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as plain:
            # by content first: a download may be packed without its name saying so
            packed = plain.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
        if not packed:
            limit.check(size, path, advice=advice)
            with path.open("rb") as plain:
                # Python allocates all that it is asked for, so not the limit of a gigabyte
                raw = plain.read(size + 1)
                if len(raw) != size:  # it grows meanwhile, or is a device or pipe of size 0
                    raw += plain.read(limit.value + 1 - len(raw))
        else:
            raw = _inflate(path, size, limit, ratio)
    except EOFError as cause:
        raise error(f"{path} is truncated gzip. Download or copy it again.") from cause
    except (gzip.BadGzipFile, zlib.error) as cause:
        raise error(
            f"{path} is not gzip or damaged ({cause}). Download or copy it again."
        ) from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}.") from cause
    if len(raw) > limit.value:
        raise limit.error(path, advice=advice)
    return raw


def _inflate(path: Path, packed: int, limit: Limit, ratio: Limit | None) -> bytes:
    """Return the content of a gzip file, at most one byte more than `limit`."""
    most = limit.value if ratio is None else max(_RATIO_FROM, ratio.value * packed)
    with gzip.open(path) as file:
        raw = file.read(min(limit.value, most) + 1)
    if ratio is not None and most < len(raw) <= limit.value:
        raise ratio.error(path, -(-len(raw) // packed), advice="It was made to exhaust memory.")
    return raw
