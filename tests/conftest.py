"""What every test shares: one torch thread, and factories of small real models and samples."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import build_batches, build_samples, build_tiny_model

from molfun import registry
from molfun.cli import flags, schema
from molfun.models.structure import MolfunStructureModel
from molfun.sample import Sample, SampleBatch

# the same inputs each time, so that a run says something about the change it is for;
# MOLFUN_FUZZ=1 draws new ones
settings.register_profile(
    "same",
    derandomize=not os.environ.get("MOLFUN_FUZZ"),
    # how long inputs take says something about the machine alone
    suppress_health_check=[HealthCheck.too_slow],
    deadline=None,
)
settings.load_profile("same")

torch.set_num_threads(1)

UPSTREAM_WARNINGS = (
    # openfold 0.0.1 indexes with lists and speaks to autocast the old way
    "ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning",
    "ignore:torch.get_autocast_gpu_dtype:DeprecationWarning",
    "ignore:`torch.cuda.amp.autocast:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let through the warnings of code that is not ours."""
    for line in UPSTREAM_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import and collect without the garbage collector, and let it pass over what stays.

    It would walk through all modules again and again: a tenth of the time of a collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the wait for the disk, which takes longer than most tests do."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def _remembered(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of settings makes, for as long as the same parts are registered."""

    @functools.lru_cache(maxsize=64)
    def kept(arguments: tuple[object, ...], _: tuple[object, ...]) -> Any:
        return make(*(dict(a) if isinstance(a, tuple) else a for a in arguments))

    def call(*arguments: Any) -> Any:
        parts = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
        state = tuple((*r._entries.items(), *r._aliases) for r in parts)
        return kept(tuple(tuple(a.items()) if isinstance(a, dict) else a for a in arguments), state)

    return call


@pytest.fixture(autouse=True, scope="session")
def _flags_made_once() -> Iterator[None]:
    """Make flags and schemas once: commands of this process take a quarter of their time to."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (flags, "parameters_of"), (flags, "settings_again"), (schema, "schema_text"),
        ):  # fmt: skip
            patch.setattr(module, name, _remembered(getattr(module, name)))
        yield


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Take back what a command line in this process set up, which later tests would see."""
    yield
    logger = logging.getLogger("molfun")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def reports() -> None:
    """Runs of the command line draw their reports in this test."""


@pytest.fixture(autouse=True)
def _no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots at the end of each run, a second of them: tests/report has them."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("molfun.cli.showing._written", lambda folder: folder.path / "no report")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: MOLFUN_DATA, or shared/data beside the repository."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("MOLFUN_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data absent (set MOLFUN_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., MolfunStructureModel]:
    """Factory of tiny models: ``tiny_model(seed=1, ...)``."""
    return build_tiny_model


@pytest.fixture(scope="session")
def samples() -> Callable[..., list[Sample]]:
    """Factory of samples: ``samples(6)``."""
    return build_samples


@pytest.fixture(scope="session")
def batches() -> Callable[..., list[SampleBatch]]:
    """Factory of batches: ``batches(6, batch_size=2)``."""
    return build_batches
