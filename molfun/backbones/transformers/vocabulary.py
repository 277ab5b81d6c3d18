"""Tokenizer files beside the weights of a family: compare its tokens with them, write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun.backbones.language.weight_files import read_json
from molfun.errors import CheckpointError
from molfun.text import listing


def compare_vocabulary(folder: Path, own: Mapping[str, int]) -> None:
    """Refuse a folder whose tokenizer gives letters other numbers than the model was built for.

    ``vocab.txt``, ``tokenizer.json`` and ``added_tokens.json`` are read, as far as they are there;
    letters that none of them lists are not compared.

    Raises
    ------
    CheckpointError
        With the letters that differ.
    """
    theirs = _read(folder)
    wrong = [
        f"{letter}: {theirs[letter]} there, {token} in this model"
        for letter, token in own.items()
        if theirs.get(letter, token) != token
    ]
    if wrong:
        raise CheckpointError(f"{folder}: its tokenizer is of another model:\n{listing(wrong, 5)}")


def write_tokenizer(folder: Path, tokenizer: Any, words: Sequence[str]) -> None:
    """Write a tokenizer of transformers.

    Parameters
    ----------
    folder
        Where the weights are.
    tokenizer
        Its class.
    words
        Words of the vocabulary by their numbers; none where the class has them itself.
    """
    if words:
        file = folder / "vocab.txt"
        file.write_text("\n".join(words))
        tokenizer(str(file)).save_pretrained(folder)
    else:
        tokenizer().save_pretrained(folder)


def _read(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    if (file := folder / "vocab.txt").is_file():
        words = file.read_text(encoding="utf-8").split("\n")
        found |= {word.strip(): i for i, word in enumerate(words) if word.strip()}
    if (file := folder / "tokenizer.json").is_file():
        found |= _of_tokenizer(read_json(file))
    if (file := folder / "added_tokens.json").is_file():
        found |= {k: v for k, v in read_json(file).items() if isinstance(v, int)}
    # sentencepiece marks the beginning of a word, which each residue is
    return {word.removeprefix("\u2581"): token for word, token in found.items() if word != "\u2581"}


def _of_tokenizer(content: dict[str, object]) -> dict[str, int]:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {k: v for k, v in vocabulary.items() if isinstance(v, int)}
    # Unigram models list pairs of a piece and its score
    pieces = vocabulary if isinstance(vocabulary, list) else []
    return {p[0]: i for i, p in enumerate(pieces) if isinstance(p, list) and isinstance(p[0], str)}
