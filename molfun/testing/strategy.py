"""The contract of a strategy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from molfun.errors import ConfigError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.registry import STRATEGIES
from molfun.sample import SampleBatch
from molfun.testing.samples import in_batches, series, series_model
from molfun.training import FinetuneStrategy
from molfun.training.groups import make_optimizer


def weights_of(model: MolfunStructureModel, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return copies of a model's parameters: of all, or of the named ones."""
    wanted = None if names is None else set(names)
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if wanted is None or name in wanted
    }


def trainable_names(model: MolfunStructureModel) -> set[str]:
    """Return the names of the trainable parameters."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return True if two sets of weights are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class StrategyContract:
    """Tests of a registered strategy.

    A strategy is a frozen value that survives JSON. The parameters it trains are those in the
    optimizer and those that are not frozen. Setting it up changes no prediction.
    """

    strategy_class: ClassVar[type[FinetuneStrategy]]
    settings: ClassVar[dict[str, Any]] = {}
    """Settings for a backbone of two blocks, with rates that change every weight in two epochs."""
    not_read: ClassVar[set[str]] = set()
    """Groups of parameters on which the loss of `model` does not depend."""

    def make(self, **changes: Any) -> FinetuneStrategy:
        """Build the strategy."""
        return self.strategy_class(**{**self.settings, **changes})

    def model(self, **settings: Any) -> MolfunStructureModel:
        """Build a small model, the same each time; override it to train another backbone."""
        return series_model(**{"head": "regression", **settings})

    def batches(self, n: int, *, batch_size: int = 1) -> list[SampleBatch]:
        """Draw `n` samples for `model`, the same each time."""
        return in_batches(series(n), batch_size)

    # --- a value -------------------------------------------------------------------------------

    def test_is_registered_under_its_name(self) -> None:
        assert STRATEGIES[self.strategy_class.name] is self.strategy_class

    def test_survives_json(self) -> None:
        strategy = self.make(ema_decay=0.9, scheduler="linear", grad_clip=0.5)
        text = json.dumps(strategy.to_dict())
        assert FinetuneStrategy.from_dict(json.loads(text)) == strategy
        assert json.loads(text)["name"] == self.strategy_class.name

    def test_is_frozen_and_hashable(self) -> None:
        strategy = self.make()
        with pytest.raises(AttributeError, match="cannot assign to field 'ema_decay'"):
            strategy.ema_decay = 0.5  # type: ignore[misc]
        assert len({strategy, self.make()}) == 1

    def test_takes_keywords_only(self) -> None:
        with pytest.raises(TypeError, match="positional"):
            self.strategy_class(1e-3)  # type: ignore[call-arg, arg-type]

    def test_names_all_bad_settings_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.make(scheduler="cosin", accumulation_steps=0, ema_decay=1.0, grad_clip=-1.0)
        text = str(caught.value)
        assert text.startswith(f"{self.strategy_class.__name__}: ")
        assert "Unknown scheduler 'cosin'; known: constant, cosine, linear, plateau, step" in text
        assert "Did you mean 'cosine'?" in text
        assert "accumulation_steps must be at least 1, got 0." in text
        assert "ema_decay must be in [0, 1), got 1.0." in text
        assert "grad_clip must be at least 0, got -1.0." in text

    def test_unknown_settings_get_the_nearest_name(self) -> None:
        with pytest.raises(ConfigError) as caught:
            FinetuneStrategy.from_dict(
                {"name": self.strategy_class.name, "ema_decy": 0.9, "weight_decey": 0.1}
            )
        text = str(caught.value)
        assert f"Unknown setting of {self.strategy_class.__name__} 'ema_decy'" in text
        assert "Did you mean 'ema_decay'?" in text
        assert "Did you mean 'weight_decay'?" in text

    def test_head_is_not_slower_than_the_rest(self) -> None:
        strategy = self.strategy_class()
        assert strategy.head_lr >= strategy.main_lr > 0

    # --- the three sets ------------------------------------------------------------------------

    def test_trainable_is_optimizer_is_not_frozen(self) -> None:
        model, strategy = self.model(), self.make()
        strategy.setup(model)
        optimizer, parameters = make_optimizer(strategy, model)
        trainable = trainable_names(model)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert trainable == set(parameters)
        assert trainable | frozen == {name for name, _ in model.named_parameters()}
        in_optimizer = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(in_optimizer) == len(set(in_optimizer))
        assert set(in_optimizer) == {id(p) for p in model.parameters() if p.requires_grad}
        assert model.head is not None
        assert all(p.requires_grad for p in model.head.parameters())

    def test_only_what_trains_changes(self) -> None:
        # no weight decay, which would change a weight that got no gradient
        model, strategy = self.model(), self.make(weight_decay=0.0)
        strategy.setup(model)
        before = weights_of(model)
        groups = strategy.groups(model)
        model.fit(self.batches(4), strategy=strategy, epochs=2)
        after = weights_of(model)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed <= trainable_names(model)
        reached = {g.name for g in groups if changed & {name for name, _ in g.parameters}}
        assert reached == {g.name for g in groups} - self.not_read
        assert {name for name in before if name.startswith("head.")} <= changed

    def test_fit_ends_in_eval_mode(self) -> None:
        model = self.model()
        model.fit(self.batches(2), strategy=self.make(), epochs=1)
        assert not any(module.training for module in model.modules())

    # --- set-up --------------------------------------------------------------------------------

    def test_setup_changes_no_prediction(self) -> None:
        model, batch = self.model(), self.batches(3, batch_size=3)[0]
        before = model.predict(batch)["prediction"]
        self.make().setup(model)
        assert torch.equal(model.predict(batch)["prediction"], before)

    def test_setup_twice_is_setup_once(self) -> None:
        model, strategy = self.model(), self.make()
        strategy.setup(model)
        trainable, weights = trainable_names(model), weights_of(model)
        strategy.setup(model)
        assert trainable_names(model) == trainable
        assert same_bits(weights_of(model), weights)

    def test_setup_draws_nothing_from_the_global_generator(self) -> None:
        model = self.model()
        state = torch.get_rng_state()
        self.make().setup(model)
        assert torch.equal(torch.get_rng_state(), state)

    def test_one_object_serves_every_fold(self) -> None:
        # state kept on the strategy would leak from one fold of a cross-validation to the next
        strategy, results = self.make(), []
        settings = strategy.to_dict()
        for _ in range(3):
            model = self.model()
            history = model.fit(self.batches(2), strategy=strategy, epochs=1)
            results.append((history[0]["train_loss"], weights_of(model)))
        assert strategy.to_dict() == settings
        assert strategy == self.make()
        assert {loss for loss, _ in results} == {results[0][0]}
        assert all(same_bits(weights, results[0][1]) for _, weights in results)

    def test_a_model_without_a_head_trains_or_says_why_not(self) -> None:
        model, strategy = self.model(head=None), self.make()
        strategy.prepare(model.backbone)
        if list(strategy.backbone_entries(model.backbone)):
            strategy.setup(model)
            assert trainable_names(model)
        else:
            with pytest.raises(RunError, match=r"trains nothing on this model.*Pass head=\.\.\."):
                strategy.setup(model)

    # --- on disk -------------------------------------------------------------------------------

    @pytest.mark.parametrize("set_up_first", [False, True])
    def test_saved_and_loaded_predicts_the_same_bits(
        self, tmp_path: Path, set_up_first: bool
    ) -> None:
        model, strategy, batch = self.model(), self.make(), self.batches(3, batch_size=3)[0]
        # a strategy that changes nothing would pass the comparison below
        untrained = model.predict(batch)["prediction"]
        model.fit(self.batches(2), strategy=strategy, epochs=2)
        expected = model.predict(batch)["prediction"]
        assert not torch.equal(expected, untrained)
        model.save(tmp_path / "checkpoint")
        fresh = self.model()
        if set_up_first:
            strategy.setup(fresh)
        fresh.load(tmp_path / "checkpoint")
        assert torch.equal(fresh.predict(batch)["prediction"], expected)
        assert fresh.strategy == strategy
        assert trainable_names(fresh) == trainable_names(model)
        assert same_bits(weights_of(fresh), weights_of(model))
