"""Checksums inside of the files that Molfun writes.

A file of ``torch.save`` is a zip archive and carries the sha256 of all its bytes as the archive's
comment; a safetensors file carries one over tensors and texts in its header. Both stay readable for
everybody else, there is no second file that could be lost or written halfway, and a file without a
checksum, such as published weights, is read as ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molfun.errors import CheckpointError

if TYPE_CHECKING:
    import torch

KEY = "molfun_sha256"
"""Name of the checksum in the header of a safetensors file."""
_MARK = b"molfun sha256 "
_SIZE = len(_MARK) + 64
_END_OF_ARCHIVE, _END_SIZE = b"PK\x05\x06", 22


ADVICE = "Copy it again from its source."
"""What to do about a damaged file where the caller knows nothing better."""


def damaged(path: str | Path, advice: str = ADVICE) -> CheckpointError:
    """Error for a file whose content is not what its checksum says."""
    return CheckpointError(
        f"{path} is damaged (checksum): its content is not what was written. {advice}"
    )


def seal_torch(path: Path) -> None:
    """Put a checksum into a file that ``torch.save`` has just written."""
    with path.open("r+b") as file:
        file.seek(-_END_SIZE, os.SEEK_END)
        assert file.read(4) == _END_OF_ARCHIVE, "torch.save writes archives without a comment"
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _SIZE))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode())


def has_mark(path: Path) -> bool:
    """Return whether a torch file carries a checksum."""
    return _read_seal(path).startswith(_MARK)


def check_torch(path: Path, advice: str = ADVICE) -> None:
    """Compare a torch file with its checksum, where it carries one.

    Raises
    ------
    CheckpointError
        If they differ.
    """
    seal = _read_seal(path)
    if _MARK not in seal:
        return
    digest, left = hashlib.sha256(), path.stat().st_size - _SIZE
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    if seal != _MARK + digest.hexdigest().encode():
        raise damaged(path, advice)


def _read_seal(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(_SIZE, path.stat().st_size), os.SEEK_END)
        return file.read(_SIZE)


def digest_of(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], key: str = ""
) -> str:
    """Sha256 over names, types, shapes and bytes of tensors, over texts, and over `key`."""
    import torch

    texts = {name: text for name, text in metadata.items() if name != KEY}
    digest = hashlib.sha256(json.dumps([key, texts], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def order_header(path: Path) -> None:
    """Put the texts in the header of a safetensors file in order, so that equal files are equal.

    The library writes them in an order that differs from process to process.
    """
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
        texts = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(texts.items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the same content; if its spelling were longer, it stays as it is
            file.seek(8)
            file.write(text.ljust(size))
