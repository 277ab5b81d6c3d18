"""Caps that readers check before they take memory, each with a name by which a user raises it.

A reader declares its cap beside its code and checks it as soon as the size is known::

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
"""Unpacked sizes below this are harmless at any ratio."""


@dataclass(frozen=True)
class Limit:
    """One cap of one reader.

    Parameters
    ----------
    name
        What is capped, in capitals; the environment variable is ``MOLFUN_MAX_<name>``.
    default
        The cap where the variable is not set. Large enough for every honest file.
    unit
        What is counted, in the plural, as the error says it.

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
        """Environment variable that raises the cap."""
        return f"MOLFUN_MAX_{self.name}"

    @property
    def value(self) -> int:
        """The cap in force, read again at each use.

        Raises
        ------
        ConfigError
            If the variable holds no whole number; ``500M`` and ``2G`` (times 1024) are numbers.
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
        """Raise UnsafeFileError if `found` is above the cap; `advice` is one more way out."""
        if found > self.value:
            raise self.error(where, found, advice=advice)

    def error(
        self, where: str | Path, found: int | None = None, *, advice: str = ""
    ) -> UnsafeFileError:
        """Error for a file above the cap; leave `found` out where reading stopped at the cap."""
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
    """Content of a file, unpacked if it is gzip (by its first bytes or its name), up to `limit`.

    Parameters
    ----------
    path
        A file that exists.
    limit
        Cap on the bytes, unpacked.
    ratio
        Cap on unpacked by packed bytes, for kinds of file that never pack well.
    error
        Kind of error for a damaged file.
    advice
        Another way out of the cap than to raise it, for the error.

    Raises
    ------
    UnsafeFileError
        If the file is larger than a cap; no more than the cap was read.
    DataError
        If the file cannot be read or is damaged gzip, as `error`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
        if not packed:
            limit.check(size, path, advice=advice)
            with path.open("rb") as plain:
                # the size on disk may be that of a link or of a file that still grows
                raw = plain.read(limit.value + 1)
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
    """Bytes of a gzip file, one more than `limit` at most."""
    most = limit.value if ratio is None else max(_RATIO_FROM, ratio.value * packed)
    with gzip.open(path) as file:
        raw = file.read(min(limit.value, most) + 1)
    if ratio is not None and most < len(raw) <= limit.value:
        raise ratio.error(path, -(-len(raw) // packed), advice="It was made to exhaust memory.")
    return raw
