"""Weight files: where they are, whether they are whole, and under which licence."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from pathlib import Path

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.text import megabytes

PLACES = ("~/.molfun/weights", "weights")
"""Folders that weights/README.md names."""
ENDINGS = (".pt", ".ckpt", ".npz", ".safetensors", ".pth")
LICENCES = (
    ("finetuning_*.pt", "OpenFold", "CC BY 4.0"),
    ("initial_training*.pt", "OpenFold", "CC BY 4.0"),
    ("params_model_*.npz", "AlphaFold", "CC BY 4.0"),
    ("esm2_t*.pt", "ESM-2", "MIT"),
    ("pet-*.ckpt", "PET", "BSD-3-Clause"),
)
"""Names of published files, their origin, and their licence."""
_POINTER = b"version https://git-lfs"


def check(context: Context) -> Iterator[Finding]:
    """List the weight files, with checksum and licence."""
    folders = [Path(place).expanduser() for place in PLACES] + list(context.weights)
    places = list(dict.fromkeys(folder.absolute() for folder in folders))
    files = [file for folder in places for file in _files(folder)]
    for file in files:
        yield _described(file)
    if not files:
        yield Finding(
            status="WARNING",
            topic="weights",
            text=f"none in {' or '.join(map(str, places))}: models start from random weights",
            remedy="weights/README.md lists the files and where they come from; pass one with "
            "--weights FILE.",
        )


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix in ENDINGS and p.is_file())


def _described(file: Path) -> Finding:
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(len(_POINTER))
        opened.seek(0)
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    origin, licence = _origin(file.name)
    topic, facts = f"weights {file}", {"bytes": size, "sha256": found, "licence": licence}
    if fault := _fault(file, size, head, found):
        remedy = "Download or copy it again."
        return Finding(status="FAILED", topic=topic, text=fault, remedy=remedy, facts=facts)
    text = f"{origin}{megabytes(size)}, {licence or 'licence not known'}, sha256 {found}"
    return Finding(status="OK", topic=topic, text=text, facts=facts)


def _origin(name: str) -> tuple[str, str | None]:
    """Return the origin of a published file and its licence; None for other files.

    Examples
    --------
    >>> _origin("esm2_t6_8M_UR50D.pt"), _origin("mine.pt")
    (('ESM-2, ', 'MIT'), ('', None))
    """
    for pattern, origin, licence in LICENCES:
        if fnmatch.fnmatch(name, pattern):
            return f"{origin}, ", licence
    return "", None


def _fault(file: Path, size: int, head: bytes, found: str) -> str:
    if not size:
        return "is empty"
    if head == _POINTER:
        return "is a pointer of Git LFS, not the file itself"
    noted = file.with_name(f"{file.name}.sha256")
    words = noted.read_text().split() if noted.is_file() else []
    if words and words[0].lower() != found:
        return f"has the sha256 {found}, and {noted.name} says {words[0]}"
    return ""
