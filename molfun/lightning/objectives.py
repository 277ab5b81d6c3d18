"""Objectives in the form of the Lightning guide: ``forward(x, mask)`` gives loss and metrics."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from molfun.errors import DataError
from molfun.lightning.adapters import GuideRegistry
from molfun.objectives.base import Objective, ObjectiveOutput
from molfun.objectives.series import SeriesObjective
from molfun.registry import OBJECTIVES, Registry
from molfun.strict import build


@dataclass
class SSLConfig:
    """Settings of an objective; derive a dataclass from it and add yours.

    Parameters
    ----------
    name
        Registered name of the objective.
    """

    name: str = ""


class BaseSSLObjective(nn.Module, ABC):
    """An objective that makes its own masks or views and computes its own loss.

    Values come standardised, with 0 where nothing was observed, and `forward` runs the encoder on
    them as it likes. In validation torch's generator is seeded again for every batch, so that
    masks drawn with them repeat.

    Parameters
    ----------
    encoder
        The encoder that is trained, a `BaseEncoder`; as ``self.encoder`` it is no part of the
        objective's own parameters.
    config
        Settings, of the class in `CONFIG_REGISTRY` or else in ``config_class``.

    Examples
    --------
    >>> class Reconstruct(BaseSSLObjective):
    ...     def __init__(self, encoder, config):
    ...         super().__init__(encoder, config)
    ...         self.decoder = nn.Linear(encoder.config.d_model, encoder.config.d_input)
    ...     def forward(self, x, mask):
    ...         error = (self.decoder(self.encoder(x, mask)) - x)[mask]
    ...         return error.square().mean(), {"mae": error.abs().mean()}
    >>> from molfun.backbones.timeseries.encoders.linear import LinearConfig, LinearEncoder
    >>> objective = Reconstruct(LinearEncoder(LinearConfig(d_input=3, d_model=4)), SSLConfig())
    >>> objective(torch.zeros(2, 5, 3), torch.ones(2, 5, 3, dtype=torch.bool))[0].shape
    torch.Size([])
    """

    config_class: ClassVar[type[Any]] = SSLConfig

    def __init__(self, encoder: nn.Module, config: Any) -> None:
        super().__init__()
        # in a list, so that it is no submodule: a checkpoint would hold it twice
        self._encoder = [encoder]
        self.config = config

    @property
    def encoder(self) -> nn.Module:
        """The encoder that is trained."""
        return self._encoder[0]

    @abstractmethod
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Mean loss of a batch, and metrics.

        Parameters
        ----------
        x
            (batch, time, features) standardised values.
        mask
            The same shape, True where a value was observed.

        Notes
        -----
        A third argument named ``padding_mask`` receives (batch, time), True for time steps that
        are no padding; batches of series of different lengths need it.
        """

    def after_step(self, progress: float) -> None:
        """Follow an optimizer step, with the share of all steps done (for EMA teachers)."""


class GuideObjective(SeriesObjective):
    """A `BaseSSLObjective` as an objective of Molfun; `SSL_REGISTRY` makes these.

    Loss and metrics, which come as means of a batch, count as often as it has series.
    """

    wrapped: ClassVar[type[BaseSSLObjective]]

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = self.name in CONFIG_REGISTRY
        config_class = CONFIG_REGISTRY[self.name] if known else self.wrapped.config_class
        self._config = settings
        self.config = build(config_class, {"name": self.name, **settings})
        self.inner: Any = nn.Identity()
        self._takes_padding = "padding_mask" in inspect.signature(self.wrapped.forward).parameters

    def build(self, backbone: Any) -> None:
        """Make the user's objective around the encoder."""
        self.inner = self.wrapped(backbone.encoder, self.config)

    def prepare(
        self,
        features: dict[str, torch.Tensor],
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Return the features as they are: masks are drawn in `forward`."""
        return dict(features)

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Loss of a batch.

        Raises
        ------
        DataError
            If there is padding, of which the objective would not know.
        """
        padding = batch["padding_mask"]
        mask = batch["mask"] & padding.unsqueeze(-1)
        x = torch.where(mask, backbone.scaled(batch["timeseries"]), 0.0)
        told = {"padding_mask": padding} if self._takes_padding else {}
        if not told and not bool(padding.all()):
            raise DataError(
                f"The series of a batch differ in length, and {self.wrapped.__name__}.forward "
                f"would take padding for data. Let it take padding_mask and pass it to the encoder."
            )
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices=devices, enabled=not self.training):
            if not self.training:
                torch.manual_seed(0)
            loss, metrics = self.inner(x, mask, **told)
        n = len(x)
        values = {k: torch.as_tensor(v).detach() for k, v in metrics.items() if k != "loss"}
        sums = {k: float(v) * n for k, v in values.items()}
        return ObjectiveOutput(loss * n, n, sums)

    def metrics(self, loss: float, sums: Mapping[str, Any], n_labels: int) -> dict[str, float]:
        """Means of what `forward` gave, over all series."""
        del loss
        return {name: value / n_labels for name, value in sums.items()}

    def after_step(self, progress: float) -> None:
        """Call the user's objective after an optimizer step."""
        self.inner.after_step(progress)


SSL_REGISTRY = GuideRegistry(
    OBJECTIVES, guide=BaseSSLObjective, own=Objective, adapter=GuideObjective
)
"""Objectives by name."""
CONFIG_REGISTRY = Registry("ssl_configs")
"""Settings of those objectives that do not name theirs in ``config_class``."""
