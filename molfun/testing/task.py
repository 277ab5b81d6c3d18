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

    def leaves(self, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs that the loss differentiates."""
        return {name: value for name, value in outputs.items() if value.requires_grad}

    def prediction_shape(self, outputs: dict[str, torch.Tensor]) -> torch.Size:
        """Return the shape of predictions: that of the raw output, if the task says no more."""
        return outputs["prediction"].shape

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
        outputs = self.outputs(labels)
        together = task.loss(outputs, labels)
        alone = [
            task.loss(_rows(outputs, slice(i, i + 1)), labels[i : i + 1])
            for i in range(len(labels))
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
        rest = task.loss(_rows(outputs, slice(1, None)), labels[1:])
        assert loss.n_labels == rest.n_labels
        assert float(loss.total.detach()) == pytest.approx(float(rest.total.detach()), rel=1e-5)
        gradients = _gradients(loss.total, self.leaves(outputs))
        assert not any(bool(gradient[0].any()) for gradient in gradients.values())
        assert any(bool(gradient[1:].any()) for gradient in gradients.values())

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
        outputs = self.outputs(labels)
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in outputs.items()}
        assert task.loss(half, labels).total.dtype == torch.float32
        # heads may be called under autocast by a user's own loop
        there = torch.isfinite(task.predictions(outputs))
        assert there.any()
        assert torch.equal(torch.isfinite(task.predictions(half)), there)

    def test_a_step_down_the_gradient_lowers_the_loss(self) -> None:
        task = self.make()
        labels = self.encoded(task)
        outputs = self.outputs(labels)
        before = task.loss(outputs, labels).total
        gradients = _gradients(before, self.leaves(outputs))
        stepped = {name: outputs[name] - 1e-3 * value for name, value in gradients.items()}
        after = task.loss({**outputs, **stepped}, labels).total
        assert float(after.detach()) < float(before.detach())

    def test_predictions_are_float64_of_the_raw_shape(self) -> None:
        task = self.make()
        outputs = self.outputs(self.encoded(task))
        predictions = task.predictions(outputs)
        assert predictions.dtype == torch.float64
        assert predictions.shape == self.prediction_shape(outputs)

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
        one, other = task.predictions(outputs), again.predictions(outputs)
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))

    def rows(self, task: Task, values: torch.Tensor) -> list[np.ndarray]:
        """Return one array per sample of a batch, without padding."""
        return task.split(values, self.lengths or [1] * len(values))


def _rows(outputs: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in outputs.items()}


def _gradients(total: torch.Tensor, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(leaves, found, strict=True)
    }
