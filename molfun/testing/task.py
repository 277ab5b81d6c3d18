"""The contract of a task."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from molfun.registry import HEADS, TASKS
from molfun.tasks.base import Task


class TaskContract:
    """Tests of a registered task.

    A task turns labels into numbers, missing ones into NaN, and sums its loss over the labels that
    are there. The statistics it learned from a training set survive `state_dict`.
    """

    name: ClassVar[str]
    """Registered name of the task."""
    settings: ClassVar[dict[str, Any]] = {}
    """Arguments of the task."""
    targets: ClassVar[Sequence[Any]]
    """At least four labels of different samples, not all equal and none of them None."""
    lengths: ClassVar[Sequence[int] | None] = None
    """Number of residues of each sample, for labels of residues or pairs."""

    def make(self, *, fitted: bool = True) -> Task:
        """Build the task, with the scale or classes of `targets`."""
        task: Task = TASKS[self.name](**self.settings)
        if fitted:
            task.fit_targets(list(self.targets))
        return task

    def outputs(self, labels: torch.Tensor, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Draw the output of a head for a batch of encoded labels."""
        task = self.make()
        dims = {"sequence": 1, "residue": 2, "pair": 3}[task.level]
        shape = labels.shape[:dims] + ((task.n_outputs,) if task.n_outputs > 1 else ())
        raw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return {"prediction": raw.requires_grad_()}

    def encoded(self, task: Task, targets: Sequence[Any] | None = None) -> torch.Tensor:
        """Return labels encoded as a batch."""
        return task.encode(list(self.targets if targets is None else targets), self.lengths)

    def test_is_registered_under_its_name(self) -> None:
        assert TASKS[self.name].name == self.name
        assert self.make().default_head in HEADS

    def test_labels_become_numbers_and_missing_ones_nan(self) -> None:
        task = self.make()
        for target in self.targets:
            numbers = task.numbers(target)
            assert numbers.dtype == np.float64
            assert np.isfinite(numbers).any()
        assert np.isnan(task.numbers(None)).all()
        labels = self.encoded(task, [None, *list(self.targets)[1:]])
        # a total energy of 40,000 eV has steps of 4 meV in float32
        assert labels.dtype == torch.float64
        assert torch.isnan(labels[0]).all()
        assert not torch.isnan(labels[1]).all()

    def test_training_labels_are_looked_at_once(self) -> None:
        # a second fit or a validation set must not move the scale of the trained head
        task = self.make()
        before = json.dumps(task.state_dict())
        task.fit_targets(list(self.targets)[:-1])
        assert json.dumps(task.state_dict()) == before

    def test_no_labels_at_all_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no labels"):
            self.make(fitted=False).fit_targets([None, None])

    def test_loss_is_a_sum_over_labels(self) -> None:
        task = self.make()
        labels = self.encoded(task)
        raw = self.outputs(labels)["prediction"]
        together = task.loss({"prediction": raw}, labels)
        alone = [
            task.loss({"prediction": raw[i : i + 1]}, labels[i : i + 1]) for i in range(len(raw))
        ]
        assert together.n_labels == sum(one.n_labels for one in alone) > 0
        total = sum(float(one.total.detach()) for one in alone)
        assert float(together.total.detach()) == pytest.approx(total, rel=1e-5)

    def test_missing_labels_count_for_nothing(self) -> None:
        task = self.make()
        labels = self.encoded(task)
        outputs = self.outputs(labels)
        labels[0] = math.nan
        loss = task.loss(outputs, labels)
        rest = task.loss({"prediction": outputs["prediction"][1:]}, labels[1:])
        assert loss.n_labels == rest.n_labels
        assert float(loss.total.detach()) == pytest.approx(float(rest.total.detach()), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss.total, outputs["prediction"])
        assert not gradient[0].any()
        assert gradient[1:].any()

    def test_a_batch_without_labels_has_loss_0_with_a_graph(self) -> None:
        # Lightning calls backward on every batch, also on one without labels
        task = self.make()
        labels = torch.full_like(self.encoded(task), math.nan)
        loss = task.loss(self.outputs(labels), labels)
        assert (float(loss.total.detach()), loss.n_labels) == (0.0, 0)
        assert loss.total.requires_grad

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_loss_is_float32(self, dtype: torch.dtype) -> None:
        task = self.make()
        labels = self.encoded(task)
        half = {"prediction": self.outputs(labels)["prediction"].to(dtype)}
        assert task.loss(half, labels).total.dtype == torch.float32
        # heads may be called under autocast by a user's own loop
        assert torch.isfinite(task.predictions(half)).all()

    def test_a_step_down_the_gradient_lowers_the_loss(self) -> None:
        task = self.make()
        labels = self.encoded(task)
        raw = self.outputs(labels)["prediction"]
        before = task.loss({"prediction": raw}, labels).total
        (gradient,) = torch.autograd.grad(before, raw)
        after = task.loss({"prediction": raw - 1e-3 * gradient}, labels).total
        assert float(after.detach()) < float(before.detach())

    def test_predictions_are_float64_of_the_raw_shape(self) -> None:
        task = self.make()
        outputs = self.outputs(self.encoded(task))
        predictions = task.predictions(outputs)
        assert predictions.dtype == torch.float64
        assert predictions.shape == outputs["prediction"].shape

    def test_a_user_gets_one_prediction_per_sample(self) -> None:
        task = self.make()
        rows = self.rows(task, task.predictions(self.outputs(self.encoded(task))))
        assert len(task.present(rows)["prediction"]) == len(self.targets)
        assert len(task.present([])["prediction"]) == 0

    def test_metrics_have_their_names_and_know_when_they_are_not_defined(self) -> None:
        task = self.make()
        labels = self.encoded(task)
        found = task.metrics(
            task.join(self.rows(task, task.predictions(self.outputs(labels)))),
            task.join(self.rows(task, labels)),
        )
        assert list(found) == task.metric_names
        assert all(isinstance(value, float) for value in found.values())
        empty = task.join([])
        assert all(math.isnan(value) for value in task.metrics(empty, empty).values())

    def test_config_rebuilds_it_from_json(self) -> None:
        task = self.make()
        config = json.loads(json.dumps(dict(task.config_dict)))
        assert TASKS[self.name](**config).config_dict == task.config_dict

    def test_what_it_learned_survives_json(self) -> None:
        task, again = self.make(), self.make(fitted=False)
        again.load_state_dict(json.loads(json.dumps(task.state_dict())))
        labels = self.encoded(task)
        outputs = self.outputs(labels)
        assert torch.equal(self.encoded(again).nan_to_num(-1), labels.nan_to_num(-1))
        assert torch.equal(task.loss(outputs, labels).total, again.loss(outputs, labels).total)
        assert torch.equal(task.predictions(outputs), again.predictions(outputs))

    def rows(self, task: Task, values: torch.Tensor) -> list[np.ndarray]:
        """Return one array per sample of a batch, without padding."""
        return task.split(values, self.lengths or [1] * len(values))
