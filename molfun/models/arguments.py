"""What `fit` and `pretrain` are given, looked at before anything is computed or written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from molfun.config import check_seed
from molfun.errors import ConfigError, DataError, unknown_name
from molfun.registry import STRATEGIES
from molfun.training.auto import choose_strategy
from molfun.training.base import FinetuneStrategy
from molfun.training.callbacks import Callback


def check_arguments(
    train: Any, seed: int, callbacks: Any, strategy: Any, *, by_name: bool = True
) -> list[Callback]:
    """The callbacks, if all of it can be used; ConfigError or DataError otherwise.

    A strategy is an object or its name, or with ``by_name=False`` an object or None.
    """
    if not isinstance(train, Sized) or len(train) == 0:
        raise DataError(
            "The training set has no length or no batch. Pass a DataLoader over a data set that is "
            "not empty, or a list of batches."
        )
    check_seed(seed)
    _check_strategy(strategy, by_name=by_name)
    wrong = callbacks
    if isinstance(callbacks, Iterable):
        found = list(callbacks)
        others = [one for one in found if not isinstance(one, Callback)]
        if not others:
            return found
        wrong = others[0]
    raise ConfigError(
        f"callbacks must be a list of molfun.training.Callback objects, got {_shown(wrong)}."
    )


def _check_strategy(strategy: Any, *, by_name: bool) -> None:
    if isinstance(strategy, type):
        raise ConfigError(
            f"strategy is the class {strategy.__name__}; pass an object: {strategy.__name__}()."
        )
    if not isinstance(strategy, FinetuneStrategy | (str if by_name else None)):
        names = f" or one of {', '.join([*STRATEGIES, 'auto'])}" if by_name else ""
        raise ConfigError(
            f"strategy must be an object such as FullFinetune(){names}, got {_shown(strategy)}."
        )


def as_strategy(
    strategy: FinetuneStrategy | str, n_samples: int, n_blocks: int
) -> FinetuneStrategy:
    """A strategy as it is, by its name, or chosen by the number of samples."""
    if not isinstance(strategy, str):
        return strategy
    if strategy == "auto":
        return choose_strategy(n_samples, n_blocks)
    if strategy not in STRATEGIES:
        raise ConfigError(unknown_name("strategy", strategy, [*STRATEGIES, "auto"]))
    return STRATEGIES[strategy]()


def as_settings(argument: str, given: Any) -> dict[str, Any]:
    """A copy of the settings of a part; None has none.

    Raises
    ------
    ConfigError
        If they are no mapping from names.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{argument} must map names to values, got {_shown(given)}.")
    return dict(given)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."
