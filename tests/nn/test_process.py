"""The settings of the process around Molfun: not needed, and not changed."""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError
from molfun.nn.process import ignore_upstream, settled
from molfun.training.interrupt import SignalWatch

DATA = [("MKVA", 1.0), ("ACDE", 2.0), ("GGSA", 3.0), ("MKKA", 4.0)]


def build(head: str | None = "regression") -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head=head, device="cpu")


def dataset() -> SequenceDataset:
    return SequenceDataset.from_list(DATA)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed_all() -> None:
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


VERBS: dict[str, Callable[[MolfunStructureModel], Any]] = {
    "fit": lambda m: m.fit(dataset(), dataset(), strategy="lora", epochs=1),
    "pretrain": lambda m: build(None).pretrain(dataset(), epochs=1),
    "predict": lambda m: m.predict(dataset()),
    "evaluate": lambda m: m.evaluate(dataset()),
    "embed": lambda m: m.embed(["MKV"], pooling="mean"),
    "merge": lambda m: m.fit(dataset(), strategy="lora", epochs=1) and m.merge().unmerge(),
    "new model": lambda m: build(),
}


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_program_around_draws_what_it_would_have_drawn(verb: str) -> None:
    model = build()
    seed_all()
    expected = [draws(), draws()]
    seed_all()
    found = [draws()]
    VERBS[verb](model)
    assert [*found, draws()] == expected


def test_a_random_search_around_fit_tries_different_points() -> None:
    np.random.seed(7)
    found = []
    for _ in range(3):
        found.append(round(np.random.rand(), 4))
        build().fit(dataset(), strategy="head_only", epochs=1)
    assert found == [0.0763, 0.7799, 0.4384]  # NumPy's own sequence of seed 7


def test_dropout_in_a_training_loop_of_ones_own_is_drawn_each_time() -> None:
    model = MolfunStructureModel(
        "esm2_tiny", head="mlp", head_config={"dropout": 0.5}, device="cpu"
    )
    model.fit(dataset(), strategy="head_only", epochs=1)
    model.train()
    batch = [dataset()[0]]
    first, second = (model(batch)["prediction"] for _ in range(2))
    assert not torch.equal(first, second)


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    assert torch.get_default_dtype() == dtype


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "float64": lambda: _default(torch.float64),
    "bfloat16": lambda: _default(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy raises": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_training_gives_the_same_under_any_settings_of_the_program(name: str) -> None:
    expected = build()
    history = expected.fit(dataset(), dataset(), strategy="full", epochs=2)
    with SURROUNDINGS[name]():
        model = build()
        again = model.fit(dataset(), dataset(), strategy="full", epochs=2)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in history]
    found = model.predict(dataset())["prediction"]
    assert torch.equal(found, expected.predict(dataset())["prediction"])
    assert not found.is_inference()


def test_a_default_device_of_the_program_is_not_used() -> None:
    expected = build().embed(["MKV"], pooling="mean")
    torch.set_default_device("meta")
    found = build().embed(["MKV"], pooling="mean")
    assert torch.get_default_device() == torch.device("meta")
    torch.set_default_device(None)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("family", ["openfold", "timeseries"])
def test_other_backbones_do_not_depend_on_the_default_dtype(family: str) -> None:
    from tiny import build_samples, build_series

    samples = build_samples(2) if family == "openfold" else build_series(2)
    options: dict[str, Any] = {"config": "tiny"} if family == "openfold" else {}
    if family == "timeseries":
        options["backbone_config"] = {"d_input": 3}
    head = "affinity" if family == "openfold" else "regression"
    expected = MolfunStructureModel(family, head=head, device="cpu", **options).predict(samples)
    with _default(torch.float64):
        model = MolfunStructureModel(family, head=head, device="cpu", **options)
        found = model.predict(samples)
    assert torch.equal(found["prediction"], expected["prediction"])


def test_filters_levels_handlers_and_threads_are_what_they_were() -> None:
    model = build()
    other = logging.getLogger("lightning_fabric")
    other.setLevel(logging.CRITICAL)
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    before = list(warnings.filters), torch.get_num_threads(), list(logging.root.handlers)

    with settled(training=True):  # as a package does that is imported meanwhile
        warnings.simplefilter("always")
        torch.set_num_threads(before[1] + 1)
        other.setLevel(logging.DEBUG)
    model.fit(dataset(), dataset(), strategy="lora", epochs=1)

    assert (list(warnings.filters), torch.get_num_threads(), list(logging.root.handlers)) == before
    assert other.level == logging.CRITICAL
    assert {n: signal.getsignal(n) for n in signals} == signals
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_algorithms_that_the_program_asks_for_are_kept() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        build().fit(dataset(), strategy="full", epochs=1)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_warnings_of_wrapped_packages_are_left_out_inside_only() -> None:
    with warnings.catch_warnings():
        ignore_upstream("an upstream warning of this test", UserWarning)
    with settled():
        warnings.warn("an upstream warning of this test", UserWarning, stacklevel=1)
    with pytest.raises(UserWarning, match="an upstream warning of this test"):
        warnings.warn("an upstream warning of this test", UserWarning, stacklevel=1)


def test_threads_that_overlap_leave_the_default_dtype_of_the_program() -> None:
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with settled():
            inside.set()
            leave.wait(30)
            seen.append(torch.get_default_dtype())

    with _default(torch.float64):
        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(30)
        with settled():
            seen.append(torch.get_default_dtype())
        leave.set()
        thread.join()
    assert seen == [torch.float32, torch.float32]


def test_weights_made_under_inference_mode_are_refused_by_name() -> None:
    model = build()
    with torch.inference_mode():
        for name, parameter in list(model.head.named_parameters()):  # type: ignore[union-attr]
            module, _, leaf = name.rpartition(".")
            copied = torch.nn.Parameter(parameter.clone(), requires_grad=False)
            setattr(model.head.get_submodule(module), leaf, copied)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"made or moved under torch.inference_mode\(\)"):
        model.fit(dataset(), strategy="head_only", epochs=1)


def test_a_handler_that_was_not_set_from_python_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a handler was replaced that cannot be put back")

    monkeypatch.setattr(signal, "signal", refuse)
    with SignalWatch() as watch:
        assert watch.received is None
