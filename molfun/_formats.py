"""Recognise files of the wrong format by their first bytes.

Programs write workbooks, archives and web pages under any name, and a failed download is often an
HTML page. `foreign` names such a file and says what to do with it; readers of text files call it
before they parse.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from molfun.errors import DataError

_SPREADSHEET = "Open it in a spreadsheet program and save it as {wanted}."
_UNPACK = "Unpack it and give the {wanted} file in it."
_REPACK = "Unpack it, or pack it with gzip."
_ANOTHER = "Give a {wanted} file."

_SIGNATURES = (
    (b"PAR1\x15", "a Parquet file under another name",
     "Rename it to .parquet, or write it as {wanted}."),
    (b"PARE\x15", "an encrypted Parquet file", "Decrypt it and write it as {wanted}."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Excel workbook", _SPREADSHEET),
    (b"\x09\x08\x10\x00\x00\x06\x05\x00", "an old Excel workbook (.xls)", _SPREADSHEET),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table you need as {wanted}."),
    (b"ARROW1\x00\x00", "an Arrow (Feather) file", "Write it as Parquet or {wanted}."),
    (b"FEA1\x00\x00", "a Feather file", "Write it as Parquet or {wanted}."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Export the table you need as {wanted}."),
    (b"CDF\x01", "a netCDF file", "Export the table you need as {wanted}."),
    (b"CDF\x02", "a netCDF file", "Export the table you need as {wanted}."),
    (b"CDF\x05", "a netCDF file", "Export the table you need as {wanted}."),
    (b"\x93NUMPY", "a numpy array (.npy)", _ANOTHER),
    *((b"BZh%d1AY&SY" % level, "packed with bzip2", _REPACK) for level in range(1, 10)),
    (b"\xfd7zXZ\x00", "packed with xz", _REPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _REPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _REPACK),
    (b"\x1f\x8b", "packed with gzip, twice or unexpectedly", "Unpack it."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"%PDF-", "a PDF document", "Export the data as {wanted}."),
    (b"{\\rtf", "a rich text document", "Save it as plain text."),
    (b"\x89PNG", "an image", _ANOTHER),
    (b"\x00\x05\x16\x07", "a resource file of macOS (._name)", "Give the file without ._"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself",
     "Fetch the file: git lfs pull."),
)  # fmt: skip
"""First bytes of a format, its name, and advice.

Gzip comes here only if the reader has unpacked one layer already or does not read gzip.
"""

_ZIPPED = (
    ("opendocument.spreadsheet", "an OpenDocument spreadsheet (.ods)", _SPREADSHEET),
    ("opendocument", "an OpenDocument file", _SPREADSHEET),
    ("word/", "a Word document", "Save the table in it as {wanted}."),
    ("xl/", "an Excel workbook", "Save it as {wanted} (in Excel: File, Save As, CSV UTF-8)."),
    (
        ".iwa",
        "an Apple Numbers spreadsheet",
        "Export it as {wanted} (in Numbers: File, Export To).",
    ),
    (
        "Index.zip",
        "an Apple Numbers spreadsheet",
        "Export it as {wanted} (in Numbers: File, Export To).",
    ),
    (".npy", "a numpy archive (.npz)", _ANOTHER),
    ("/data.pkl", "a file of torch.save", _ANOTHER),
)
"""Names inside a zip archive, the format they show, and advice; the first match counts."""

_HTML = re.compile(r"<(!doctype html|html|head|body|table|div|meta)\b", re.IGNORECASE)
_JSON = re.compile(r"[\[{]\s*(?:[\"{\[\]}]|\d[\d.]*\s*[,\]]|$)")


def foreign(raw: bytes, wanted: str) -> str | None:
    r"""Return the format of a file that is not plain text, with advice; None if it may be text.

    Parameters
    ----------
    raw
        Content of the file. The beginning suffices, except for names inside a zip archive.
    wanted
        Format that the reader accepts, for the advice.

    Examples
    --------
    >>> foreign(b"SQLite format 3\x00...", "CSV")
    'is an SQLite database. Export the table you need as CSV.'
    >>> foreign(b"id,target\n1a4w,6.5\n", "CSV") is None
    True
    """
    what, advice = _zipped(raw) if raw.startswith(b"PK\x03\x04") else _signed(raw)
    return f"is {what}. {advice.format(wanted=wanted)}" if what else None


def foreign_text(text: str, wanted: str) -> str | None:
    """Return the format of a text that is HTML, JSON or XML, with advice; None for other texts.

    Examples
    --------
    >>> foreign_text("<html><table>...", "CSV")
    'is an HTML page; a download failed, or a program wrote a page. Download it again, or open it in
    a spreadsheet program and save it as CSV.'
    """
    head = text[:2000].lstrip("\ufeff \t\r\n")
    if head[:200].lower().startswith("<?xml") and "office:spreadsheet" in head:
        return f"is an Excel workbook in XML. {_SPREADSHEET.format(wanted=wanted)}"
    if _HTML.match(head) or (head.startswith("<") and _HTML.search(head)):
        return (
            f"is an HTML page; a download failed, or a program wrote a page. Download it again, or "
            f"open it in a spreadsheet program and save it as {wanted}."
        )
    if head.startswith(("<?xml", "<!--")):
        return f"is XML. Give a {wanted} file."
    if head.startswith("MIME-Version:"):
        return f"is a web archive. {_SPREADSHEET.format(wanted=wanted)}"
    return f"is JSON. Write it as {wanted}." if _JSON.match(head) else None


def refuse_foreign(path: Path, raw: bytes, wanted: str, error: type[DataError]) -> None:
    """Raise `error` for content that `foreign` recognises."""
    found = foreign(raw, wanted)
    if found is not None:
        raise error(f"{path} {found}")


def decoded(raw: bytes) -> tuple[str, str]:
    """Return the text of a file, and its encoding: UTF-8, UTF-16 or UTF-32, else Latin-1.

    Raises
    ------
    UnicodeDecodeError
        If a file with the byte order mark of UTF-16 or UTF-32 is damaged.

    Examples
    --------
    >>> decoded("é".encode("utf-16"))
    ('é', 'utf-16')
    """
    # UTF-32 first: its little-endian mark begins with that of UTF-16
    if raw.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        encoding = "utf-32"
    elif raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif raw[:4].count(0) == 2 and raw[0] != raw[1]:
        # UTF-16 without a mark: every second byte of an ASCII header is zero
        encoding = "utf-16-be" if raw[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return raw.decode(encoding), encoding
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise
    return raw.decode("latin-1"), "latin-1"  # never fails: every byte is a character


def text_of(
    path: Path, raw: bytes, wanted: str, error: type[DataError] = DataError
) -> tuple[str, str]:
    """Text of a file and its encoding, see `decoded`; raise `error` for what is no such text.

    Parameters
    ----------
    path, raw
        The file, and its content.
    wanted
        Kind of text, for messages.
    error
        Class of the error.
    """
    refuse_foreign(path, raw, wanted, error)
    try:
        text, encoding = decoded(raw)
    except UnicodeDecodeError:
        raise error(f"{path} is damaged UTF-16 text. Save it again as UTF-8.") from None
    found = foreign_text(text, wanted)
    if found is not None:
        raise error(f"{path} {found}")
    return text, encoding


def line_of(text: str, position: int) -> int:
    r"""Return the line number (from 1) of a position in a text with any kind of line ends.

    Examples
    --------
    >>> line_of("a\r\nb\rc", 5)
    3
    """
    before = text[:position]
    return before.count("\n") + before.count("\r") - before.count("\r\n") + 1


def _signed(raw: bytes) -> tuple[str, str]:
    for signature, what, advice in _SIGNATURES:
        if raw.startswith(signature):
            return what, advice
    if raw[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    return "", ""


def _zipped(raw: bytes) -> tuple[str, str]:
    names = _names_in_zip(raw)
    # an OpenDocument file stores its type uncompressed after the first name, "mimetype"
    signs = [*names, raw[30:100].decode("latin-1")]
    for part, what, advice in _ZIPPED:
        if any(part in sign for sign in signs):
            return what, advice
    shown = ", ".join(repr(name[:60]) for name in names[:3]) + (", ..." if names[3:] else "")
    return "a zip archive" + (f" of {shown}" if names else ""), _UNPACK


def _names_in_zip(raw: bytes) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except Exception:  # a damaged archive can make the reader fail in any way
        return []
