"""Text of structure files: packed or plain, any encoding and line ends, up to a limit."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from molfun._limits import Limit, read_bytes
from molfun.errors import StructureError

MAX_BYTES = Limit("STRUCTURE_BYTES", 2**29)
"""Largest structure text, unpacked. Even capsids and ribosomes of the PDB stay below."""
MAX_RATIO = Limit("STRUCTURE_GZIP_RATIO", 100, "unpacked bytes per packed byte")
"""An honest structure file packs 4 to 10 times."""
MAX_ATOMS = Limit("STRUCTURE_ATOMS", 3_000_000, "atoms")
"""Most atoms of one file, all models together; the largest entry of the PDB has 2.4 million."""
CUT = "Keep only the chains you need."
"""Advice in place of a higher limit."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Read the text of a structure file, with line feeds and one character per byte.

    A byte-order mark is left out and UTF-16 is understood. Bytes above 127 become the characters
    of Latin-1, so the columns of a PDB file stay where they are.

    Raises
    ------
    StructureError
        If the file is missing, empty, binary or a web page.
    UnsafeFileError
        If it is larger than a limit.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise StructureError(f"{path} {what}. Give a PDB or mmCIF file.")
    raw = read_bytes(path, MAX_BYTES, ratio=MAX_RATIO, error=StructureError, advice=CUT)
    raw = _without_mark(path, raw)
    if not raw.strip():
        raise StructureError(f"{path} is empty. Download or export the structure again.")
    if b"\0" in raw:
        raise StructureError(
            f"{path} is binary (or UTF-16 without a mark), not PDB or mmCIF text. Download it "
            f"again, or save it as plain text."
        )
    head = raw[:200].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise StructureError(
            f"{path} is a web page or XML, not PDB or mmCIF text; a download probably failed. "
            f"Download the .cif or .pdb file again."
        )
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # Ctrl-Z ended text files of DOS
    return raw.rstrip(b"\x1a").decode("latin-1")


def _without_mark(path: Path, raw: bytes) -> bytes:
    """Return the bytes without a byte-order mark, as UTF-8."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw[len(mark) :] if encoding == "utf-8" else raw.decode(encoding).encode()
            except UnicodeDecodeError as error:
                raise StructureError(
                    f"{path} begins as {encoding.upper()} and is not: byte {error.start} is "
                    f"damaged. Save it as plain text again."
                ) from error
    return raw


def refuse_foreign(path: Path, where: str, text: str) -> None:
    """Refuse characters that are not ASCII in what is used of a file; they shift columns."""
    found = re.search(r"[^\x20-\x7e]", text)
    if found is None:
        return
    code = ord(found.group())
    if found.group() == "\t":
        what = "a tab"
        advice = "Columns are counted in characters; replace tabs by blanks."
    else:
        what = f"byte 0x{code:02x}" if code < 256 else f"character U+{code:04X}"
        what += " that is not ASCII" if code > 127 else " that is no text"
        advice = "Repair this line or export the file again."
    raise StructureError(f"{path} has {what} in {where}, column {found.start() + 1}. {advice}")
