"""Base class for objectives whose ``forward(x, mask)`` returns loss and metrics."""

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

    `forward` gets standardised values, with 0 where nothing was observed, and runs the encoder
    itself. In validation torch's generator is seeded for every batch, so that every validation
    draws the same masks.

    Parameters
    ----------
    encoder
        The encoder that trains, a `BaseEncoder`. It is available as ``self.encoder`` and not among
        the objective's own parameters.
    config
        Settings: an instance of the class in `CONFIG_REGISTRY`, or else of ``config_class``.

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
        """The encoder that trains."""
        return self._encoder[0]

    @abstractmethod
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return the mean loss of a batch, and metrics.

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
        """Update state after an optimizer step, such as an EMA teacher.

        Parameters
        ----------
        progress
            Share of all optimizer steps that are done, from 0 to 1.
        """


class GuideObjective(SeriesObjective):
    """Wrap a `BaseSSLObjective` as an objective of Molfun; `SSL_REGISTRY` makes subclasses of this.

    Loss and metrics of a batch are means, so each is weighted by the number of its series.
    """

    name = "wrapped"  # each subclass has the name that it is registered under
    wrapped: ClassVar[type[BaseSSLObjective]]

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = self.name in CONFIG_REGISTRY
        config_class = CONFIG_REGISTRY[self.name] if known else self.wrapped.config_class
        self._config = settings
        self.config = build(config_class, {"name": self.name, **settings})
        self.inner: Any = nn.Identity()
        # optional, since many objectives are written for series of one length
        self._takes_padding = "padding_mask" in inspect.signature(self.wrapped.forward).parameters

    def build(self, backbone: Any) -> None:
        """Build the user's objective around the encoder."""
        self.inner = self.wrapped(backbone.encoder, self.config)

    def prepare(
        self,
        features: dict[str, torch.Tensor],
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Return the features as they are; `forward` draws the masks."""
        return dict(features)

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the loss of a batch.

        Raises
        ------
        DataError
            If the batch has padding, and the objective takes no ``padding_mask``.
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
                # user code draws from the global generator, as it is not given one; in validation
                # the state is restored afterwards, so that training draws stay as they were
                torch.manual_seed(0)
            loss, metrics = self.inner(x, mask, **told)
        n = len(x)
        values = {k: torch.as_tensor(v).detach() for k, v in metrics.items() if k != "loss"}
        sums = {k: float(v) * n for k, v in values.items()}
        return ObjectiveOutput(loss * n, n, sums)

    def metrics(self, loss: float, sums: Mapping[str, Any], n_labels: int) -> dict[str, float]:
        """Return the means of the metrics over all series."""
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
"""Settings classes of objectives that set no ``config_class``."""
