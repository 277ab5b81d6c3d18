"""What readers of sequences share: digests, and warnings on what was read."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from molfun.sample import CHAIN_SEPARATOR, MASK

logger = logging.getLogger(__name__)

NOT_NAMED = (
    "%s: the rows are called seq_1, seq_2 ..., and predictions leave its column 'id' out. To call "
    "them by it, set id_column='id' (--id-column id)."
)


def digests_of(sequences: Iterable[str], max_length: int | None) -> list[str]:
    """Return a short sha256 of each sequence as the model sees it."""
    seen = (
        CHAIN_SEPARATOR.join(c[:max_length] for c in text.split(CHAIN_SEPARATOR)).upper()
        for text in (sequence.replace(MASK, "?") for sequence in sequences)
    )
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in seen]


def warn_dna(path: Path, first: Sequence[str]) -> None:
    """Warn if the first sequences of a file have hardly any letter but those of nucleotides."""
    letters = Counter("".join(first).upper())
    total = sum(letters.values())
    if total > 50 and sum(letters[c] for c in "ACGTUN") > 0.95 * total:
        logger.warning(
            "%s: nearly all letters are A, C, G, T, U or N. Are these nucleotides? Protein "
            "sequences are expected.",
            path,
        )
