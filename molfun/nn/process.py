"""Put the settings of the process aside while Molfun works, and put them back afterwards.

A program around Molfun has settings of its own: seeds, a default dtype that another package left
behind, a block of ``no_grad``, filters for warnings. Two rules keep both sides right. Molfun does
not depend on them: a model computes the same under any of them. And it does not change them: a
random search around `fit` draws what it would have drawn without.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from molfun.errors import ConfigError

_noise: list[tuple[str, type[Warning], str]] = []
"""Warnings of wrapped packages that no user can act on: message, category, module."""


def ignore_upstream(message: str, category: type[Warning] = Warning, module: str = "") -> None:
    """Leave a warning of a wrapped package out, from now on and wherever `settled` is entered.

    Parameters
    ----------
    message, module
        Regular expressions for the beginning of the text and of the module's name.
    category
        Class of the warning.
    """
    if (message, category, module) not in _noise:
        _noise.append((message, category, module))
    warnings.filterwarnings("ignore", message, category, module)


@contextlib.contextmanager
def settled(*, training: bool = False, draws: bool = False) -> Iterator[None]:
    """Work under Molfun's own settings of the process, and leave those of the program unchanged.

    Generators of Python, NumPy and torch, default dtype and device, inference mode, NumPy's error
    handling, filters of warnings, number of threads and deterministic algorithms are at the end
    what they were. The default dtype is float32, the default device the CPU and inference mode off
    meanwhile. Numbers of threads and deterministic algorithms are the program's own throughout.

    Parameters
    ----------
    training
        Whether this is a whole run: grad mode is on, an autocast around the block is off, since the
        precision of a run is its own setting, and levels of loggers are put back.
    draws
        Whether the program's generators go on with what is drawn in the block, as dropout in a
        training loop of your own needs it.

    Examples
    --------
    >>> torch.set_default_dtype(torch.float64)
    >>> with settled():
    ...     torch.zeros(1).dtype, torch.rand(1).shape
    (torch.float32, torch.Size([1]))
    >>> torch.get_default_dtype()
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    with contextlib.ExitStack() as stack:
        if not draws:
            stack.enter_context(kept_generators())
        stack.enter_context(_shared)
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if training:
            stack.enter_context(kept_levels())
            stack.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Put the states of all generators back at the end: Python's, NumPy's and torch's."""
    state, seed = random_state(), torch.initial_seed()
    try:
        yield
    finally:
        set_random_state(state)
        if "cuda" not in state and torch.cuda.is_initialized():
            # for the first time, in the block: as it would have been
            torch.cuda.manual_seed_all(seed)


def random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def kept_levels() -> Iterator[None]:
    """Put the levels of all loggers back at the end."""
    known: list[Any] = [logging.root, *logging.root.manager.loggerDict.values()]
    levels = [(logger, logger.level) for logger in known if isinstance(logger, logging.Logger)]
    try:
        yield
    finally:
        for logger, level in levels:
            if logger.level != level:
                logger.setLevel(level)


def refuse_inference_tensors(module: torch.nn.Module) -> None:
    """Refuse to train weights that were made under ``torch.inference_mode``.

    Raises
    ------
    ConfigError
        If there are any.
    """
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ConfigError(
            "The model's weights were made or moved under torch.inference_mode(), and torch cannot "
            "train such tensors. Build the model outside of that block."
        )


class _Shared:
    """Settings of all threads, put aside by the first that enters and put back by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before = _put_aside()

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._before is not None:
                self._before.close()
                self._before = None


_shared = _Shared()


def _put_aside() -> contextlib.ExitStack:
    """Note what the process has, set what Molfun needs; closing the stack undoes it."""
    stack = contextlib.ExitStack()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    exact = _exactness()

    def put_back() -> None:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if _exactness() != exact:
            torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])

    stack.callback(put_back)
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    # what is imported meanwhile adds filters of its own
    stack.enter_context(warnings.catch_warnings())
    for message, category, module in _noise:
        warnings.filterwarnings("ignore", message, category, module)
    return stack


def _exactness() -> tuple[bool, bool]:
    """Return whether torch is asked for deterministic algorithms, and whether it only warns."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
