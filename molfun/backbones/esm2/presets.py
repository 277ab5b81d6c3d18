"""Sizes of ESM-2, as released by Meta."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from molfun.errors import ConfigError
from molfun.strict import check_choice, refuse_unknown, wrong_counts


@dataclass(frozen=True, kw_only=True)
class ESM2Config:
    """Architecture of an ESM-2.

    Parameters
    ----------
    num_layers
        Transformer blocks.
    embed_dim
        Channels per residue.
    attention_heads
        Heads of each block; `embed_dim` must be a multiple of twice their number.
    token_dropout
        Whether embeddings are rescaled for masked tokens, as in all released models.

    References
    ----------
    Lin et al. 2023, "Evolutionary-scale prediction of atomic-level protein structure with a
    language model", Science 379, 1123, table S1.
    """

    num_layers: int
    embed_dim: int
    attention_heads: int
    token_dropout: bool = True

    def __post_init__(self) -> None:
        sizes = ("num_layers", "embed_dim", "attention_heads")
        problems = wrong_counts(**{name: getattr(self, name) for name in sizes})
        if not problems and self.embed_dim % (2 * self.attention_heads):
            problems.append(
                f"embed_dim={self.embed_dim} does not divide into {self.attention_heads} heads of "
                f"an even size, as rotary embeddings need."
            )
        if problems:
            raise ConfigError("ESM-2 config: " + " ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def _size(num_layers: int, embed_dim: int, attention_heads: int) -> ESM2Config:
    return ESM2Config(num_layers=num_layers, embed_dim=embed_dim, attention_heads=attention_heads)


PRESETS = {
    "esm2_t6_8M_UR50D": _size(6, 320, 20),
    "esm2_t12_35M_UR50D": _size(12, 480, 20),
    "esm2_t30_150M_UR50D": _size(30, 640, 20),
    "esm2_t33_650M_UR50D": _size(33, 1280, 20),
    "esm2_t36_3B_UR50D": _size(36, 2560, 40),
    "esm2_t48_15B_UR50D": _size(48, 5120, 40),
    "esm2_tiny": _size(2, 32, 4),
}
"""Released sizes (Lin et al. 2023, table S1), and one for tests."""
_CUSTOM = re.compile(r"esm2_t(\d+)_d(\d+)_h(\d+)")


def resolve(config: str | Mapping[str, Any] | ESM2Config) -> ESM2Config:
    """Return the architecture for a preset name, a mapping of fields, or an `ESM2Config`.

    A name such as ``"esm2_t2_d64_h4"`` describes any other size: 2 blocks, 64 channels, 4 heads.

    Raises
    ------
    ConfigError
        If the name or a field is unknown, a field is missing, or a size is not possible.

    Examples
    --------
    >>> resolve("esm2_t6_8M_UR50D").embed_dim
    320
    """
    if isinstance(config, ESM2Config):
        return config
    if isinstance(config, str):
        custom = _CUSTOM.fullmatch(config)
        if custom:
            return _size(*map(int, custom.groups()))
        if config == "tiny":
            config = "esm2_tiny"
        check_choice("ESM-2 config", config, PRESETS)
        return PRESETS[config]
    known = [f.name for f in fields(ESM2Config)]
    refuse_unknown("key in the ESM-2 config", config, known)
    missing = [k for k in known[:3] if k not in config]
    if missing:
        raise ConfigError(f"The ESM-2 config lacks {', '.join(missing)}.")
    return ESM2Config(**config)
