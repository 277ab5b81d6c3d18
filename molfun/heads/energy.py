"""The energy a backbone was trained on, as a head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.strict import Configured
from molfun.trunk import TrunkOutput

logger = logging.getLogger(__name__)


class EnergyHead(Configured, Head):
    """A view on the modules inside a backbone that give one of its energies.

    It has no weights of its own: what trains as the head are `modules` of the backbone.

    Parameters
    ----------
    target
        Name of one of the backbone's energies; None takes ``"energy"``, or the first if there is
        none of that name.
    modules
        Groups of modules that train as the head: ``"node_heads"``, ``"edge_heads"``,
        ``"node_last_layers"``, ``"edge_last_layers"`` for PET. None takes all of them, an empty
        list none.
    forces, stress
        True to predict them as well; None to do so where the training set has labels for them.

    Examples
    --------
    >>> EnergyHead(target="energy/pbe0").config_dict["target"]
    'energy/pbe0'
    """

    needs = ("properties",)
    default_task = "energy"

    def __init__(
        self,
        *,
        target: str | None = None,
        modules: Sequence[str] | None = None,
        forces: bool | None = None,
        stress: bool | None = None,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())

    def attach(self, backbone: Any, task: Any) -> None:
        """Choose the modules, and the derivatives that have labels.

        Raises
        ------
        ConfigError
            If the backbone has no energies, or not this one.
        """
        if not hasattr(backbone, "use_readout"):
            raise ConfigError(
                f"The head 'energy' is a part of models of atoms, and {backbone.display_name} is "
                f"none. Use head='mlp'."
            )
        labelled = getattr(task, "derivatives", ())
        wanted = {
            name: name in labelled if self._config[name] is None else bool(self._config[name])
            for name in ("forces", "stress")
        }
        if self._config["target"] is None:
            self._config["target"] = _usual(list(backbone.targets))
        backbone.use_readout(self._config["target"], modules=self._config["modules"], **wanted)

    def measured(self, task: Any, targets: Callable[[], Sequence[Any]]) -> Any:
        """Return the task with all derivatives that have labels; without forces if refused."""
        seen = task.for_labels(targets())
        refused = [name for name in ("forces", "stress") if self._config[name] is False]
        seen.derivatives = tuple(name for name in seen.derivatives if name not in refused)
        return seen

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Return the energy (batch,) as ``prediction``, and forces and stress if computed."""
        properties = dict(trunk.need("properties"))
        return {"prediction": properties.pop("energy"), **properties}


def _usual(targets: list[str]) -> str:
    if "energy" in targets or not targets:
        return "energy"
    if len(targets) > 1:
        logger.warning(
            "The model has the energies %s: the first is used. Choose with "
            "head_config={'target': ...} or use_target (--target, --new-target).",
            ", ".join(targets),
        )
    return targets[0]
