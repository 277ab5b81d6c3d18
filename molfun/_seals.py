"""Checksums inside the files that Molfun writes.

A file of ``torch.save`` is a zip archive; the archive's comment holds the sha256 of all its bytes.
A safetensors file has a checksum over tensors and metadata in its header. Other programs read both
kinds of file as before, and no second file can get lost or be half written. A file without a
checksum, such as published weights, is read without one.
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
# signature and size of a zip archive's last record, which ends with the comment and its length
_END_OF_ARCHIVE, _END_SIZE = b"PK\x05\x06", 22


ADVICE = "Copy it again from its source."
"""Default advice for a damaged file."""


def damaged(path: str | Path, advice: str = ADVICE) -> CheckpointError:
    """Return the error for a file that does not match its checksum."""
    return CheckpointError(
        f"{path} is damaged (checksum): its content is not what was written. {advice}"
    )


def seal_torch(path: Path) -> None:
    """Append a checksum, as the archive's comment, to a new file of ``torch.save``."""
    with path.open("r+b") as file:
        file.seek(-_END_SIZE, os.SEEK_END)
        assert file.read(4) == _END_OF_ARCHIVE, "torch.save writes archives without a comment"
        # the length of the comment first, since the digest covers it
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
    """Compare a torch file with the checksum it carries, if any.

    Raises
    ------
    CheckpointError
        If they differ.
    """
    # `in` and not startswith: a file with bytes after its seal is damaged, not unsealed
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
    """Return the sha256 over names, types, shapes and bytes of tensors, the metadata and `key`."""
    import torch

    texts = {name: text for name, text in metadata.items() if name != KEY}
    digest = hashlib.sha256(json.dumps([key, texts], sort_keys=True).encode())
    for name in sorted(tensors):
        # the logical content: views and devices must not change the digest
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def order_header(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file, so that equal content is equal bytes.

    The library writes them in the order of a hash map, which differs from process to process.
    """
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
        texts = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(texts.items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # tensors start right after the header, so it must not grow
            file.seek(8)
            file.write(text.ljust(size))
