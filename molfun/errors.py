"""All exceptions that Molfun raises on purpose.

::

    MolfunError
    ├── ConfigError (ValueError)            an argument, option or file of settings is wrong
    ├── DataError (ValueError)              something in the user's data is wrong
    │   ├── TableError                      a CSV, TSV or Parquet table
    │   ├── StructureError                  a PDB or mmCIF file
    │   └── UnsafeFileError                 a file that could run code or exhaust memory
    ├── ContractError (TypeError)           a class for Molfun lacks what its base asks for
    ├── CheckpointError                     a checkpoint or weight file does not fit or is damaged
    ├── RunError (RuntimeError)             a run cannot start, continue or be written
    │   └── NonFiniteError                  losses or gradients stayed NaN or infinite
    └── MissingDependencyError (ImportError)

Each text says what is wrong with the value, what was found or is allowed, and what to do.
The command line prints it as one line; a traceback needs ``--debug``.
"""

from __future__ import annotations

import unicodedata


class MolfunError(Exception):
    """Base of all errors that Molfun raises on purpose."""

    def __str__(self) -> str:
        """Return the text, made safe for a terminal: it may quote anything found in a file."""
        return printable(super().__str__())


class ConfigError(MolfunError, ValueError):
    """An argument or a setting has a value that is not allowed."""


class DataError(MolfunError, ValueError):
    """The user's data has a fault; the text names file, row and column.

    Attributes
    ----------
    problems : tuple of str
        All single faults, where the text lists only the first of many.
    """

    problems: tuple[str, ...] = ()


class TableError(DataError):
    """A table of samples has bad rows or columns."""


class StructureError(DataError):
    """A structure file holds no usable protein."""


class UnsafeFileError(DataError):
    """A file was refused because reading it could run code or exhaust memory."""


class ContractError(MolfunError, TypeError):
    """A class that extends Molfun lacks an attribute, or an argument of its constructor."""


class CheckpointError(MolfunError):
    """A checkpoint or weight file is missing, damaged or made for another model."""


class RunError(MolfunError, RuntimeError):
    """A run cannot start, go on or be written."""


class NonFiniteError(RunError):
    """Loss or gradients stayed NaN or infinite over several windows."""


class MissingDependencyError(MolfunError, ImportError):
    """An optional package is needed; the text holds the install line.

    Examples
    --------
    >>> MissingDependencyError("h5py is needed here. Install it: pip install h5py").install
    'pip install h5py'
    """

    @property
    def install(self) -> str:
        """Line that installs the package, after "Install it:"; empty if the text has none."""
        return str(self).partition("Install it: ")[2]


def printable(text: str) -> str:
    r"""Return a text in which control characters and direction marks are escaped.

    A name in a file could otherwise move the cursor, change colours or titles of a terminal, or
    reverse the reading order (CVE-2021-42574, "Trojan Source"). Line ends and tabs stay.

    Examples
    --------
    >>> print(printable("1abc\x1b[2J of \u202epdb.x"))
    1abc\x1b[2J of \u202epdb.x
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _UNPRINTABLE else _by_number(c)
        for c in text
    )


_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories: control, format (direction marks, zero width), surrogate, private use, line
and paragraph separator."""


def _by_number(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
