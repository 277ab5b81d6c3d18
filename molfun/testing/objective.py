"""The contract of an objective."""

from __future__ import annotations

import copy
import json
import math
from typing import Any, ClassVar

import pytest
import torch

from molfun import MolfunStructureModel
from molfun.errors import ConfigError
from molfun.objectives.base import Objective
from molfun.registry import OBJECTIVES
from molfun.sample import Sample, SampleBatch
from molfun.testing.samples import SERIES_CONFIG, in_batches, series


class ObjectiveContract:
    """Tests of a registered objective.

    An objective makes its labels from the features of one sample, and draws from the generator it
    is given. Its loss is a sum over labels, has a gradient in every block, goes down in training,
    and a resumed run continues it exactly.
    """

    name: ClassVar[str]
    """Registered name of the objective."""
    settings: ClassVar[dict[str, Any]] = {}
    """Arguments of the objective."""
    backbone: ClassVar[tuple[str, Any]] = ("timeseries", SERIES_CONFIG)
    """Name and config of a small backbone that meets the objective's needs."""
    lacking: ClassVar[tuple[str, Any] | None] = None
    """Name and config of a small backbone that does not meet them; None if every backbone does."""
    epochs: ClassVar[int] = 30
    """Number of epochs within which the loss must go down."""
    additive: ClassVar[bool] = True
    """True if the loss of a batch is the sum over its samples; contrastive losses compare them."""

    def make(self) -> Objective:
        """Build the objective."""
        return OBJECTIVES[self.name](**self.settings)

    def model(self) -> MolfunStructureModel:
        """Build a model of the small backbone."""
        name, config = self.backbone
        return MolfunStructureModel(name, config=config, device="cpu")

    @staticmethod
    def samples() -> list[Sample]:
        """Draw four samples for the small backbone."""
        return series(4, lengths=(9, 12, 7, 15))

    def batches(self) -> list[SampleBatch]:
        """Return two batches of two samples."""
        return in_batches(self.samples(), 2)

    def prepared(self, objective: Objective, backbone: Any, seed: int = 0) -> list[Any]:
        """Prepare each sample for the objective."""
        objective.check(backbone)
        objective.build(backbone)
        return [
            objective.prepare(backbone.featurize(s), torch.Generator().manual_seed(seed))
            for s in self.samples()
        ]

    def test_is_registered_under_its_name(self) -> None:
        assert OBJECTIVES[self.name].name == self.name

    def test_preparing_changes_nothing_and_repeats(self) -> None:
        objective, backbone = self.make(), self.model().backbone
        objective.check(backbone)
        features = backbone.featurize(self.samples()[1])
        before = {k: v.clone() for k, v in features.items()}
        first, second = (
            objective.prepare(features, torch.Generator().manual_seed(3)) for _ in range(2)
        )
        assert all(torch.equal(features[k], before[k]) for k in before)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_loss_is_a_sum_over_labels(self) -> None:
        """The loss of a batch is the sum of the losses of its samples."""
        if not self.additive:
            pytest.skip("compares the samples of a batch with each other")
        objective, backbone = self.make(), self.model().backbone.eval()
        prepared = self.prepared(objective, backbone)
        together = objective(backbone, backbone.collate(prepared))
        alone = [objective(backbone, backbone.collate([p])) for p in prepared]
        assert together.n_labels == sum(o.n_labels for o in alone) > 0
        total = sum(float(o.total.detach()) for o in alone)
        assert float(together.total.detach()) == pytest.approx(total, rel=1e-4)
        for key, value in together.sums.items():
            assert value == pytest.approx(sum(o.sums[key] for o in alone), rel=1e-4)

    def test_every_block_gets_a_gradient(self) -> None:
        objective, backbone = self.make(), self.model().backbone
        objective(backbone, backbone.collate(self.prepared(objective, backbone))).total.backward()
        for block in backbone.blocks():
            assert any(p.grad is not None and bool(p.grad.any()) for p in block.parameters())

    def test_metrics_have_their_names_and_know_when_they_are_not_defined(self) -> None:
        objective = self.make()
        empty = objective.metrics(math.nan, {}, 0)
        assert list(empty) == list(objective.metric_names)
        assert all(math.isnan(v) for v in empty.values())
        assert objective.higher_is_better <= set(objective.metric_names)

    def test_config_rebuilds_it_from_json(self) -> None:
        config = json.loads(json.dumps(dict(self.make().config_dict)))
        assert OBJECTIVES[self.name](**config).config_dict == config

    def test_the_loss_goes_down(self) -> None:
        model = self.model()
        history = model.pretrain(
            self.batches(), self.batches(), objective=self.name,
            objective_config=self.settings, epochs=self.epochs,
        )  # fmt: skip
        losses = [row["val_loss"] for row in history]
        # one of the last three: masks are random, so single epochs go up and down
        assert min(losses[-3:]) < losses[0]
        assert all(f"val/{m}" in history[-1] for m in self.make().metric_names)

    def test_validation_repeats(self) -> None:
        """Random masks in validation depend on the samples alone: equal weights, equal losses."""
        from molfun import FullFinetune

        # strategies refuse a rate of 0; this one is too small to change a loss
        strategy = FullFinetune(lr=1e-30, lr_head=1e-30, lr_embedder=1e-30)
        history = self.model().pretrain(
            self.batches(),
            self.batches(),
            objective=self.name,
            strategy=strategy,
            epochs=2,
            objective_config=self.settings,
        )
        assert history[0]["val_loss"] == history[1]["val_loss"]

    def test_resume_is_exact(self, tmp_path: Any) -> None:
        from molfun.training import Callback

        class Crash(Callback):
            def on_epoch_end(self, row: Any, improved: bool) -> None:
                if row["epoch"] == 2:
                    # as Ctrl-C: nothing after this line may be needed to resume
                    raise KeyboardInterrupt

        start = self.model()
        run: dict[str, Any] = {
            "objective": self.name,
            "objective_config": self.settings,
            "epochs": 4,
        }
        whole = copy.deepcopy(start)
        reference = whole.pretrain(self.batches(), self.batches(), **run)
        stopped = copy.deepcopy(start)
        with pytest.raises(KeyboardInterrupt):
            stopped.pretrain(
                self.batches(), self.batches(), output_dir=tmp_path, callbacks=[Crash()],
                save_every_steps=1, **run,
            )  # fmt: skip
        resumed = copy.deepcopy(start)
        history = resumed.pretrain(
            self.batches(), self.batches(), output_dir=tmp_path, resume=True, **run
        )
        assert list(history) == list(reference)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_backbone_that_lacks_what_it_needs_is_refused(self) -> None:
        if self.lacking is None:
            pytest.skip("takes any backbone")
        name, config = self.lacking
        backbone = MolfunStructureModel(name, config=config, device="cpu").backbone
        with pytest.raises(ConfigError, match=rf"objective '{self.name}' needs .* has no"):
            self.make().check(backbone)
