"""Base class for heads whose ``forward(encoder_output)`` returns logits."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.lightning.adapters import GuideRegistry
from molfun.registry import HEADS
from molfun.strict import Configured, build, refuse_unknown
from molfun.trunk import Level, TrunkOutput

Pooling = Literal["mean", "cls", "none"]


@dataclass
class TaskHeadConfig:
    """Settings of a head: the section ``task`` of the configuration, and the sizes.

    Parameters
    ----------
    input_dim
        Channels of the encoder's output.
    output_dim
        Outputs per label: one logit per class, or one number.
    task_name, task_type, n_classes, hidden_dims, dropout
        As in the configuration.
    pooling
        Input of the head: ``"mean"`` over time, (batch, input_dim); ``"cls"``, the encoder's
        summary token; ``"none"``, (batch, time, input_dim).
    extra
        Further keys of the section, which are attributes as well. A key that the head's constructor
        does not read is refused as unknown. A head with many such keys sets ``config_class`` to a
        dataclass derived from this one.

    Examples
    --------
    >>> TaskHeadConfig(input_dim=8, output_dim=2, extra={"n_experts": 4}).n_experts
    4
    """

    input_dim: int = 0
    output_dim: int = 1
    task_name: str = ""
    task_type: str = ""
    n_classes: int | None = None
    hidden_dims: list[int] = field(default_factory=list)
    dropout: float = 0.0
    pooling: Pooling = "mean"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        # not `self.extra`: copy and pickle ask for attributes before there is one, which would call
        # this method for ever
        extra = self.__dict__.get("extra", {})
        if name not in extra:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self._read.add(name)
        return extra[name]

    def refuse_unread(self) -> None:
        """Refuse further keys that the head has not read.

        Raises
        ------
        ConfigError
            If there is one; the text has the nearest known name.
        """
        known = [f.name for f in dataclasses.fields(self) if f.name != "extra"]
        refuse_unknown("key in task", self.extra, [*known, *self._read])


class BaseTaskHead(nn.Module, ABC):
    """A head on the output of an encoder.

    Parameters
    ----------
    config
        Settings and sizes.

    Examples
    --------
    >>> class Scaled(BaseTaskHead):
    ...     def __init__(self, config):
    ...         super().__init__(config)
    ...         self.output = nn.Linear(config.input_dim, config.output_dim)
    ...         self.scale = config.scale
    ...     def forward(self, encoder_output):
    ...         logits = self.output(encoder_output) / self.scale
    ...         return {"logits": logits, "probs": logits.softmax(-1)}
    >>> head = Scaled(TaskHeadConfig(input_dim=4, output_dim=2, extra={"scale": 2.0}))
    >>> head(torch.zeros(3, 4))["probs"].shape
    torch.Size([3, 2])
    """

    config_class: ClassVar[type[TaskHeadConfig]] = TaskHeadConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, encoder_output: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return ``logits``, (batch, output_dim), and ``probs``.

        The task computes loss and metrics from the logits; for regression these are the
        predictions.
        """


class GuideHead(Configured, Head):
    """Wrap a `BaseTaskHead` as a head of Molfun; `TASK_HEAD_REGISTRY` makes subclasses of this."""

    wrapped: ClassVar[type[BaseTaskHead]]
    name: ClassVar[str]

    def __init__(
        self, *, single_dim: int, n_outputs: int = 1, level: Level = "sequence", **settings: Any
    ) -> None:
        super().__init__()
        if level != "sequence":
            raise ConfigError(
                f"The head {self.name!r} gives one label per series, not per {level}."
            )
        self._config = {"single_dim": single_dim, "n_outputs": n_outputs, **settings}
        config_class = self.wrapped.config_class
        values = {"input_dim": single_dim, "output_dim": n_outputs, **settings}
        # keys of the section that no field takes: a derived dataclass refuses them itself
        if config_class is TaskHeadConfig:
            known = {f.name for f in dataclasses.fields(config_class)}
            values["extra"] = {k: values.pop(k) for k in list(values) if k not in known}
        self.config = build(config_class, values)
        self.inner = self.wrapped(self.config)
        self.config.refuse_unread()
        self.n_outputs = n_outputs
        self._source = "single" if self.config.pooling == "none" else self.config.pooling
        self.needs = (self._source,)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Return the output of the user's head, with ``prediction`` added.

        Raises
        ------
        ConfigError
            If there are no logits, or another number of them than the task needs.
        """
        found = dict(self.inner(trunk.need(self._source)))
        raw = found.get("logits")
        width = None if raw is None else (raw.shape[-1] if raw.ndim > 1 else 1)
        if raw is None or width != self.n_outputs:
            given = f"keys {', '.join(map(repr, found))}" if raw is None else f"{width} logits"
            raise ConfigError(
                f"The head {self.name!r} must give 'logits' (batch, {self.n_outputs}); it gave "
                f"{given}."
            )
        # float32 under autocast as well, as every head: losses and metrics need it
        flat = raw.reshape(len(raw), self.n_outputs).float()
        return {**found, **self.as_outputs(flat, self.n_outputs)}


TASK_HEAD_REGISTRY = GuideRegistry(HEADS, guide=BaseTaskHead, own=Head, adapter=GuideHead)
"""Heads by name."""
