"""Ability of a backbone to read more of a sample than its content key stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molfun.sample import Sample


class OwnKeys:
    """Mix-in for a `Backbone` that reads what `Sample.content_key` leaves out."""

    def input_key(self, sample: Sample) -> str:
        """Return the key of a sample in caches: of all that the backbone reads of it."""
        return sample.content_key()


def input_keys(backbone: Any) -> Callable[[Sample], str]:
    """Return the function that gives the key of a sample for a backbone."""
    return functools.partial(_input_key, backbone)


def _input_key(backbone: Any, sample: Sample) -> str:
    return backbone.input_key(sample) if isinstance(backbone, OwnKeys) else sample.content_key()
