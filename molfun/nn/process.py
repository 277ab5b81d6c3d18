"""Replace the settings of the process while Molfun works, and restore them afterwards.

A program that calls Molfun has settings of its own: seeds, a default dtype that another package
left behind, a ``no_grad`` block, filters for warnings. Two rules keep both sides right. Molfun does
not depend on them: a model computes the same under any of them. And Molfun does not change them: a
random search around `fit` draws the same numbers as it would without `fit`.
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
    """Suppress a warning of a wrapped package, now and in every later `settled` block.

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
    """Run a block under Molfun's own process settings, and restore those of the program at its end.

    Restored are the generators of Python, NumPy and torch, default dtype and device, inference
    mode, NumPy's error handling, warning filters, number of threads and deterministic algorithms.
    In the block the default dtype is float32, the default device the CPU, and inference mode off.
    The number of threads and deterministic algorithms stay as the program set them.

    Parameters
    ----------
    training
        Whether the block is a whole run: grad mode is then on, an autocast around the block is off
        (the precision of a run is a setting of the run), and levels of loggers are restored.
    draws
        Whether draws in the block advance the program's generators, as they must for dropout in a
        training loop of the user's own.

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
        # NumPy's defaults, whatever the program has set with ``np.seterr``
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if training:
            # not for other verbs: going through all loggers takes longer than a small prediction
            stack.enter_context(kept_levels())
            stack.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the states of all generators at the end: Python's, NumPy's and torch's."""
    state, seed = random_state(), torch.initial_seed()
    try:
        yield
    finally:
        set_random_state(state)
        if "cuda" not in state and torch.cuda.is_initialized():
            # CUDA was first used in the block, so it had no state before: seed it as torch would
            # have done
            torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from generators that depend on `seed` alone, and put their states back at the end."""
    with kept_generators():
        seed_everything(seed)
        yield


def random_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and torch, as tensors and plain values.

    They go into resume files, which are read with ``weights_only=True``.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    # reading its state would start CUDA in a process that does not use it
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the states that `random_state` returned."""
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
    np.random.seed(seed % 2**32)  # all that NumPy takes; the others take any integer
    torch.manual_seed(seed)


@contextlib.contextmanager
def kept_levels() -> Iterator[None]:
    """Restore the levels of all loggers at the end."""
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
        If the module has such weights.
    """
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ConfigError(
            "The model's weights were made or moved under torch.inference_mode(), and torch cannot "
            "train such tensors. Build the model outside of that block."
        )


class _Shared:
    """Settings that all threads share, replaced by the first to enter and restored by the last.

    With a copy per thread, one that leaves early would restore the program's settings while another
    still computes, and one that enters late would take Molfun's settings for the program's.
    """

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
    """Set what Molfun needs; closing the returned stack restores what the process had."""
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
    # packages that are imported in the block add filters of their own, which go with it
    stack.enter_context(warnings.catch_warnings())
    for message, category, module in _noise:
        warnings.filterwarnings("ignore", message, category, module)
    return stack


def _exactness() -> tuple[bool, bool]:
    """Return whether deterministic algorithms are on, and whether torch only warns of others."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
