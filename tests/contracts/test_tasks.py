"""The tasks keep the contract."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from tiny import build_structure, build_tiny_model

from molfun.sample import Sample
from molfun.tasks import Task
from molfun.testing import TaskContract


class TestRegression(TaskContract):
    name = "regression"
    targets = (4.0, 6.5, 5.0, 9.0)


class TestRegressionOfResidues(TaskContract):
    name = "regression"
    settings = {"level": "residue", "loss": "huber"}  # noqa: RUF012
    targets = ([1.0, 2.0, math.nan], [0.5, 0.1], [3.0, 1.0, 2.0, 4.0], [0.0, 1.0])
    lengths = (3, 2, 4, 2)


class TestRegressionOfVectors(TaskContract):
    name = "regression"
    settings = {"shape": [3]}  # noqa: RUF012
    targets = ([1.0, 0.0, 2.0], [0.0, 1.0, 0.5], [2.0, 2.0, 1.0], [0.0, 0.0, 3.0])


class TestGaussian(TaskContract):
    name = "gaussian"
    targets = (4.0, 6.5, 5.0, 9.0)


class TestGaussianOfResidues(TaskContract):
    name = "gaussian"
    settings = {"level": "residue", "beta": 0.5}  # noqa: RUF012
    targets = ([1.0, 2.0, math.nan], [0.5, 0.1], [3.0, 1.0, 2.0, 4.0], [0.0, 1.0])
    lengths = (3, 2, 4, 2)


class TestQuantile(TaskContract):
    name = "quantile"
    settings = {"quantiles": [0.1, 0.25, 0.5, 0.9]}  # noqa: RUF012
    targets = (4.0, 6.5, 5.0, 9.0)


class TestMultiTarget(TaskContract):
    name = "multitarget"
    settings = {"targets": ["kd", "tm"], "loss": "huber"}  # noqa: RUF012
    targets = ([1.0, 50.0], [0.0, 70.0], [2.0, math.nan], [4.0, 61.0])


class TestBinary(TaskContract):
    name = "binary"
    settings = {"class_weight": "balanced"}  # noqa: RUF012
    targets = (1, 0, 1, 1)


class TestMulticlass(TaskContract):
    name = "multiclass"
    settings = {"n_classes": 3, "label_smoothing": 0.1}  # noqa: RUF012
    targets = ("soluble", "membrane", "fibril", "soluble")


class TestMulticlassOfResidues(TaskContract):
    name = "multiclass"
    settings = {"classes": ["C", "E", "H"], "level": "residue"}  # noqa: RUF012
    targets = ("CEH", "HH", "CCEE", "EC")
    lengths = (3, 2, 4, 2)


class TestMultilabel(TaskContract):
    name = "multilabel"
    settings = {"n_classes": 3}  # noqa: RUF012
    targets = ("a", "a;b", "c", "b;c")


class TestContact(TaskContract):
    name = "contact"
    settings = {"min_separation": 1}  # noqa: RUF012
    targets = tuple([[0.0, i % 2, 1.0], [i % 2, 0.0, 1.0], [1.0, 1.0, 0.0]] for i in range(4))
    lengths = (3, 3, 3, 3)


STRUCTURES = ("MKRDEFYWHA", "GRDFEY", "ACDEFGHI", "WYKRD")


class TestStructure(TaskContract):
    name = "structure"
    settings = {"violation": 0.1}  # noqa: RUF012

    @functools.cached_property
    def targets(self) -> Any:
        return _made()[0]

    def make(self, *, fitted: bool = True) -> Task:
        task: Any = super().make(fitted=False)
        task.use(_made()[2])
        if fitted:
            task.fit_targets(list(self.targets))
        return task

    def outputs(self, labels: torch.Tensor, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return those of a model of random weights, as a head gives them."""
        outputs = _made()[1]
        assert len(labels) == len(outputs["mask"])
        drawn = torch.Generator().manual_seed(seed)
        trained = ("prediction", "sm.", "lddt_logits", "distogram_logits", "tm_logits")
        return {
            name: (value + 0.01 * torch.randn(value.shape, generator=drawn)).requires_grad_()
            if name.startswith(trained)
            else value
            for name, value in outputs.items()
        }

    def prediction_shape(self, outputs: dict[str, torch.Tensor]) -> torch.Size:
        """Return rows of residues: seven numbers and 37 atoms each."""
        return torch.Size([*outputs["mask"].shape, 7 + 37 * 3])


@functools.cache
def _made() -> tuple[tuple[Any, ...], dict[str, torch.Tensor], Any]:
    """Structures, what a model gives for them, and its losses."""
    proteins = tuple(build_structure(s, seed=5 + i % 2) for i, s in enumerate(STRUCTURES))
    model = build_tiny_model(head="structure")
    backbone: Any = model.backbone
    samples = [Sample(id=str(i), protein=p) for i, p in enumerate(proteins)]
    with torch.no_grad():
        batch = backbone.collate([backbone.featurize(sample) for sample in samples])
        outputs = model.heads[0].head(backbone(batch, outputs=("structure",)))
    task: Any = model.task
    return proteins, outputs, task._terms
