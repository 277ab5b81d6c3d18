"""Several energies in one model: add one, choose one, and measure what training does to others."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from molfun.errors import ConfigError
from molfun.models.evaluation import serving
from molfun.models.loaders import as_loader, targets_of
from molfun.strict import build
from molfun.tasks.energy import EnergyTask
from molfun.training.callbacks import Callback
from molfun.training.history import History
from molfun.training.task_head import TaskHead

logger = logging.getLogger(__name__)


def add_target(
    model: Any, name: str, *, inherit: str | None, keep_old: bool, unit: str | None
) -> Any:
    """Add an energy to a model; see `MolfunStructureModel.add_target`."""
    _need_energies(model, "add_target")
    model.backbone.add_target(name, unit=unit, inherit=inherit, keep_old=keep_old)
    # the new head is in no weight file, so checkpoints must hold the whole backbone
    model.weights = None
    model.note_base()
    return use_target(model, name)


def use_target(model: Any, name: str) -> Any:
    """Choose the energy to train and predict; see `MolfunStructureModel.use_target`."""
    _need_energies(model, "use_target")
    model.hold([_reading(model, target=name)])
    return model


def _reading(model: Any, **settings: Any) -> TaskHead:
    """Return the only head of a model with other settings, such as another energy."""
    (part,) = model.heads
    given = {**part.head.config_dict, **settings}
    return replace(part, head=build(type(part.head), given, "head_config"))


def _need_energies(model: Any, verb: str) -> None:
    if model.head_name != "energy":
        raise ConfigError(
            f"{verb} is for models of atoms with head='energy', such as "
            f"MolfunStructureModel('pet', head='energy')."
        )


class Forgetting(Callback):
    """Measure the errors on an energy that is not trained, before and after training.

    Parameters
    ----------
    model
        The model that will be trained.
    data
        Structures with labels of that energy.
    target
        Name of that energy; by default the first of the model.

    Attributes
    ----------
    before, after
        Metrics of `EnergyTask` for all quantities that `data` has labels of.

    Raises
    ------
    ConfigError
        If the model has no such energy.
    DataError
        If `data` has no labels, or the model cannot take it.

    Examples
    --------
    ::

        model.add_target("energy/pbe0", inherit="energy")
        report = Forgetting(model, old_structures)
        model.fit(new_structures, strategy=LoRAFinetune(), callbacks=[report])
        print(report)
    """

    def __init__(self, model: Any, data: Any, target: str | None = None) -> None:
        known = getattr(model.backbone, "targets", {})
        self.target = target or next(iter(known), "")
        if self.target not in known:
            raise ConfigError(f"The model has no energy {self.target!r}; it has {list(known)}.")
        if model.head_name != "energy":
            raise ConfigError("Forgetting is for models with head='energy'.")
        self._model, self._data = model, as_loader(data)
        # a task of its own: the model's holds the scale of the new labels, not of these
        self._task = EnergyTask()
        self._task.fit_targets(targets_of(self._data))
        model.check(self._data)
        # measured when the callback is made, so before `fit` can change any weight
        self.before: dict[str, float] = self._measure()
        self.after: dict[str, float] = {}

    def on_fit_end(self, history: History) -> None:  # noqa: ARG002
        """Measure again and log both results."""
        self.after = self._measure()
        logger.info("%s", self)

    def _measure(self) -> dict[str, float]:
        # forces and stress as the labels have them, whatever the head predicts otherwise
        head = _reading(self._model, target=self.target, forces=None, stress=None)
        heads = [replace(head, task=self._task)]
        # iterating a loader draws a seed from torch's generator; the fit must not notice that
        with serving(self._model, heads) as runner, torch.random.fork_rng(devices=[]):
            return runner.metrics(runner.evaluate(self._data))

    def __str__(self) -> str:
        rows = [
            f"{name} {value:.4g} -> {self.after.get(name, float('nan')):.4g}"
            for name, value in self.before.items()
        ]
        return f"{self.target} before and after: {', '.join(rows)}"
