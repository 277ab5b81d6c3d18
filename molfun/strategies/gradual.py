"""Train the head first, then unfreeze the backbone: all at once, or from the top down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.nn.param_groups import ParameterGroup
from molfun.registry import STRATEGIES
from molfun.strategies.base import Entry, FineTunable, FinetuneStrategy
from molfun.strategies.full import FullFinetune

SHARED = tuple(setting.name for setting in dataclasses.fields(FinetuneStrategy))


@dataclass(frozen=True, kw_only=True)
class GradualFinetune(FinetuneStrategy):
    """Wrap a strategy: what it trains of the backbone begins to train some epochs later.

    A random head sends large gradients into a pretrained backbone; here it learns first, on a
    backbone that stays as it is, bit by bit (and is computed once per sample, not once per epoch).
    All parameters are in the optimizer from the start: one that is frozen has no gradient, so the
    optimizer leaves it and its moments alone.

    Settings that all strategies share may be given here or on `inner`.

    Parameters
    ----------
    inner
        Strategy that trains once all is unfrozen; its name, or its settings as a dict, will do.
    unfreeze_epoch
        Epochs in which the head trains alone.
    blocks_per_stage
        None unfreezes everything at once. A number unfreezes that many more blocks in each stage,
        from the last to the first; what follows the blocks comes with the first stage, what
        precedes them (embedder, recycling) with a stage of its own at the end.
    epochs_per_stage
        Epochs from one stage to the next.
    stage_warmup_steps
        Optimizer steps over which the learning rate of what was just unfrozen rises linearly to
        that of the schedule.

    Raises
    ------
    ConfigError
        If `inner` trains nothing of the backbone, or a shared setting has two different values.

    References
    ----------
    Howard and Ruder 2018 (ULMFiT), section 3.3, "gradual unfreezing"; Kumar et al. 2022,
    "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".

    Examples
    --------
    >>> strategy = GradualFinetune(inner=FullFinetune(lr=1e-4), unfreeze_epoch=2, ema_decay=0.99)
    >>> strategy.inner.ema_decay, strategy.main_lr
    (0.99, 0.0001)
    """

    name: ClassVar[str] = "gradual"

    inner: FinetuneStrategy = FullFinetune()  # noqa: RUF009  (a frozen value)
    unfreeze_epoch: int = 1
    blocks_per_stage: int | None = None
    epochs_per_stage: int = 1
    stage_warmup_steps: int = 0

    def __post_init__(self) -> None:
        inner: Any = self.inner
        if isinstance(inner, str):
            inner = STRATEGIES[inner]()
        elif isinstance(inner, Mapping):
            inner = FinetuneStrategy.from_dict(inner)
        if not isinstance(inner, FinetuneStrategy):
            raise ConfigError(f"GradualFinetune: inner must be a strategy, got {inner!r}.")
        object.__setattr__(self, "inner", inner)
        shared, twice = self._share(inner)
        for name, value in shared.items():
            object.__setattr__(self, name, value)
        if twice:
            raise ConfigError(f"GradualFinetune: {', '.join(twice)} differ between it and inner.")
        super().__post_init__()
        object.__setattr__(self, "inner", dataclasses.replace(inner, **shared))

    def _share(self, inner: FinetuneStrategy) -> tuple[dict[str, Any], list[str]]:
        """Return shared settings, and those that are given on both sides and differ."""
        shared, twice = {}, []
        for setting in dataclasses.fields(FinetuneStrategy):
            own, inside = getattr(self, setting.name), getattr(inner, setting.name)
            if own != setting.default and inside not in (setting.default, own):
                twice.append(setting.name)
            shared[setting.name] = inside if own == setting.default else own
        return shared, twice

    def _problems(self) -> Iterable[str]:
        yield from self._outside(
            unfreeze_epoch=(1, float("inf")),
            epochs_per_stage=(1, float("inf")),
            stage_warmup_steps=(0, float("inf")),
        )
        if self.blocks_per_stage is not None and self.blocks_per_stage < 1:
            yield f"blocks_per_stage must be at least 1, got {self.blocks_per_stage}."
        if self.inner.name in (self.name, "head_only"):
            yield f"inner is {self.inner.name!r}, which leaves nothing to unfreeze."

    @property
    def adds_adapters(self) -> bool:
        """True if `inner` adds weights."""
        return self.inner.adds_adapters

    @property
    def quantises(self) -> bool:
        """True if `inner` puts frozen weights into int8."""
        return self.inner.quantises

    @property
    def main_lr(self) -> float:
        """Learning rate of `inner`."""
        return self.inner.main_lr

    @property
    def head_lr(self) -> float:
        """Learning rate of the head, from `inner`."""
        return self.inner.head_lr

    def prepare(self, backbone: Backbone) -> None:
        """Prepare the backbone as `inner` does."""
        self.inner.prepare(backbone)

    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:
        """Return what `inner` trains in the end."""
        return self.inner.backbone_entries(backbone)

    def groups(self, model: FineTunable) -> list[ParameterGroup]:
        """Return the groups of `inner`, divided by the epoch in which they begin to train."""
        divided: list[ParameterGroup] = []
        for group in self.inner.groups(model):
            parts: dict[int, ParameterGroup] = {}
            for name, parameter in group.parameters:
                start = self._start_of(name, model.backbone)
                part = parts.setdefault(
                    start,
                    ParameterGroup(
                        group.name,
                        group.lr,
                        start_epoch=start,
                        start_warmup=self.stage_warmup_steps if start else 0,
                    ),
                )
                part.parameters.append((name, parameter))
            divided += parts.values()
        return divided

    def _start_of(self, name: str, backbone: Backbone) -> int:
        """Return the epoch (from 0) in which a parameter of the model begins to train."""
        own = name.removeprefix("backbone.")
        if own == name or backbone.layer_of(own).kind == "head":
            return 0
        if self.blocks_per_stage is None:
            return self.unfreeze_epoch
        layer, n_blocks = backbone.layer_of(own), len(backbone.blocks())
        stage = 0
        if layer.kind == "block":
            stage = (n_blocks - 1 - layer.index) // self.blocks_per_stage
        elif layer.kind in ("embedder", "early"):
            stage = -(-n_blocks // self.blocks_per_stage)  # after the stage of the first blocks
        return self.unfreeze_epoch + stage * self.epochs_per_stage

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings as plain values, those of `inner` without what is shared."""
        inner = {k: v for k, v in self.inner.to_dict().items() if k not in SHARED}
        return {**super().to_dict(), "inner": inner}
