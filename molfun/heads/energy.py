"""The energy a backbone was trained on, as a head."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

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
    in_backbone = True
    part_of = "models of atoms with energies"

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

    def readout(self, targets: Iterable[str], task: Any) -> dict[str, Any]:
        """Return the arguments of the backbone's `use_readout`, with derivatives that have labels.

        Parameters
        ----------
        targets
            Energies of the backbone.
        task
            Task of the head, which knows the labels.
        """
        if self._config["target"] is None:
            self._config["target"] = _usual(list(targets))
        labelled = getattr(task, "derivatives", ())
        wanted = {
            name: name in labelled if self._config[name] is None else bool(self._config[name])
            for name in ("forces", "stress")
        }
        return {**self._config, **wanted}

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
