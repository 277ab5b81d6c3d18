"""Read and set single settings of a strategy by nested names such as ``strategy__lr``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.errors import ConfigError
from molfun.registry import STRATEGIES
from molfun.strategies.base import FinetuneStrategy

Strategy = FinetuneStrategy | Mapping[str, Any] | str
"""A strategy, its settings with its ``name``, or the name alone."""
PREFIX = "strategy__"


def settings_in(strategy: Any) -> dict[str, Any]:
    """Return the settings of a strategy by nested names; empty if there is none to read yet.

    Examples
    --------
    >>> settings_in("head_only")["strategy__lr"]
    0.001
    >>> settings_in("auto")
    {}
    """
    if isinstance(strategy, str):
        strategy = STRATEGIES[strategy]() if strategy in STRATEGIES else None
    elif isinstance(strategy, Mapping) and strategy.get("name") in STRATEGIES:
        strategy = FinetuneStrategy.from_dict(strategy)
    if not isinstance(strategy, FinetuneStrategy):
        return {}  # "auto", or what `fit` will refuse
    found = strategy.to_dict()
    del found["name"]
    return {PREFIX + name: value for name, value in found.items()}


def with_settings(strategy: Any, settings: Mapping[str, Any]) -> FinetuneStrategy:
    """Return a strategy with some settings replaced.

    Raises
    ------
    ConfigError
        If a setting is unknown or not allowed, or no strategy is named.

    Examples
    --------
    >>> with_settings("head_only", {"lr": 0.1}).lr
    0.1
    """
    if strategy == "auto":
        raise ConfigError(
            f"{', '.join(PREFIX + name for name in settings)}: the strategy 'auto' is chosen in "
            f"fit. Name one: strategy='head_only'."
        )
    return as_strategy(strategy, **settings)


def as_strategy(strategy: Strategy, **settings: Any) -> FinetuneStrategy:
    """Return the strategy of a name, of settings, or a strategy itself, with settings replaced.

    Raises
    ------
    ConfigError
        If it names no strategy.
    """
    if isinstance(strategy, FinetuneStrategy):
        if not settings:
            return strategy
        strategy = strategy.to_dict()
    elif isinstance(strategy, str):
        strategy = {"name": strategy}
    elif not isinstance(strategy, Mapping):
        raise ConfigError(f"strategy must be a name, a strategy or its settings, got {strategy!r}.")
    return FinetuneStrategy.from_dict({**strategy, **settings})
