"""The base of fine-tuning strategies: which parameters train, and how fast.

A strategy is a value: frozen, validated when made, and made of plain values, so it survives JSON
and can be used for any number of models. The state of a run lives in the engine.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, get_args, get_type_hints

from torch import nn

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError, RunError
from molfun.nn import int8, lora
from molfun.nn.optimizers import averages_weights
from molfun.nn.param_groups import ParameterGroup, collect
from molfun.nn.process import seeded
from molfun.registry import OPTIMIZERS, STRATEGIES
from molfun.strategies.course import MODES, SCHEDULERS, Course
from molfun.strict import build, must_set
from molfun.text import unknown_name

HEAD_LR_RATIO = 10.0
"""Learning rate of the head relative to the pretrained part: it starts from random weights."""

Entry = tuple[str, float, str, nn.Parameter]

_PLURALS = {"block": "blocks", "lora": "adapters"}
"""Names of the groups of parameters in messages."""
_PLAIN_TYPES = {int: "a whole number", float: "a number", bool: "true or false"}


class FineTunable(Protocol):
    """The part of the facade that a strategy works on."""

    backbone: Backbone
    head: nn.Module | None
    strategy: FinetuneStrategy | None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and values of all parameters."""


@dataclass(frozen=True, kw_only=True)
class FinetuneStrategy(Course, ABC):
    """Settings that all strategies share.

    Parameters
    ----------
    optimizer
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"adafactor"``, ``"muon"`` or
        ``"schedule_free_adamw"`` (`molfun.nn.optimizers.build_optimizer`). The last averages the
        weights of all steps in place of schedule and EMA: it takes ``scheduler="constant"``, with
        or without a warm-up, and ``ema_decay=0``.
    momentum
        Used by sgd alone; the others take no notice of it.
    scheduler
        Course of the learning rate after warm-up. Falling with every optimizer step to the end of
        the run: ``"cosine"``, ``"linear"``; ``"warmup_cosine"`` is cosine that warms up over 10 %
        of the steps unless a warm-up is given. At the end of epochs: ``"step"`` (every
        `step_size`) and ``"plateau"`` (when `monitor` no longer improves; it needs a validation
        set). Not at all: ``"constant"``.
    warmup_steps
        Optimizer steps over which the learning rate rises linearly from 0; 0 means not given.
    warmup_ratio
        The same as a fraction of all steps; only one of the two may be given.
    min_lr_ratio
        Floor of the schedule relative to the peak.
    min_lr
        Absolute floor: cosine and linear end there instead of at 0 (torch's ``eta_min``), and
        step and plateau stop there. Each group of parameters has the larger of the two floors,
        and one whose peak is below `min_lr` stays at its peak. None sets no such floor.
    step_size, gamma
        For step: the factor `gamma` on the learning rate every `step_size` epochs.
    plateau_factor, plateau_patience
        For plateau: this factor on the learning rate when `monitor` has not improved for more
        than `plateau_patience` epochs, by 1e-4 of its best value at least (torch's
        ``ReduceLROnPlateau``); a value that is not defined (NaN) is no improvement.
    plateau_mode
        Whether the smallest (``"min"``) or the largest (``"max"``) value is the best; None takes
        what `monitor` says of itself.
    ema_decay
        Decay of the exponential moving average of the trained weights; 0 turns it off. With it,
        validation, the best checkpoint and the final model use the average.
    accumulation_steps
        Batches per optimizer step.
    grad_clip
        Largest norm of the gradient; 0 turns clipping off.
    amp
        Mixed precision where the device gains from it: bfloat16 (float16 on older GPUs); on a CPU
        training stays in float32.
    early_stopping_patience
        Epochs without a better `monitor` after which training stops; 0 turns it off.
    monitor
        What decides which epoch is the best and when to stop: ``"val/loss"``, or a metric of the
        task such as ``"val/spearman"``. An undefined value (NaN) never wins.
    weight_decay
        Weight decay of matrices: L2 with adam and sgd, decoupled with the others; biases, norms
        and other vectors get none.

    Raises
    ------
    ConfigError
        Naming all values that are not allowed, at once.
    """

    name: ClassVar[str]
    lr_name: ClassVar[str] = "lr"
    """Setting that holds `main_lr`."""

    ema_decay: float = 0.0
    accumulation_steps: int = 1
    grad_clip: float = 1.0
    amp: bool = True
    early_stopping_patience: int = 0
    monitor: str = "val/loss"
    weight_decay: float = 0.01

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "strategy", {"name": "Registered name."})

    def __post_init__(self) -> None:
        # a range can be checked only where the type is right
        problems = list(self._wrong_types()) or [*self._shared_problems(), *self._problems()]
        if problems:
            raise ConfigError(f"{type(self).__name__}: " + " ".join(problems))

    def _wrong_types(self) -> Iterator[str]:
        hints = get_type_hints(type(self))
        for setting in dataclasses.fields(self):
            value, hint = getattr(self, setting.name), hints[setting.name]
            kinds = get_args(hint) or (hint,)
            optional = value is None and type(None) in kinds
            for kind, words in _PLAIN_TYPES.items():
                if kind in kinds and not optional and not _is_a(kind, value):
                    yield f"{setting.name} must be {words}, got {value!r}."

    def _shared_problems(self) -> Iterator[str]:
        yield from self._unknown_names()
        if self.warmup_steps and self.warmup_ratio:
            yield "Give warmup_steps or warmup_ratio, not both."
        yield from self._outside(
            warmup_steps=(0, math.inf),
            warmup_ratio=(0, 1),
            min_lr_ratio=(0, 1),
            grad_clip=(0, math.inf),
            accumulation_steps=(1, math.inf),
            early_stopping_patience=(0, math.inf),
            weight_decay=(0, math.inf),
            step_size=(1, math.inf),
            plateau_patience=(0, math.inf),
        )
        yield from self._outside_open_ranges()

    def _unknown_names(self) -> Iterator[str]:
        # lists and tuples, since a name from a file may not be hashable
        known = self.optimizer in list(OPTIMIZERS)
        if not known:
            yield unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.scheduler not in SCHEDULERS:
            yield unknown_name("scheduler", self.scheduler, SCHEDULERS)
        elif known and averages_weights(self.optimizer):
            yield from self._averaged_twice()
        if self.plateau_mode not in (None, *MODES):
            yield unknown_name("plateau_mode", self.plateau_mode, MODES)

    def _averaged_twice(self) -> Iterator[str]:
        """Yield what makes no sense with an optimizer that averages the weights itself."""
        wrong = [f"scheduler={self.scheduler!r}"] if self.scheduler != "constant" else []
        wrong += [f"ema_decay={self.ema_decay:g}"] if self.ema_decay else []
        if wrong:
            yield (
                f"{self.optimizer} averages the weights itself, in place of a schedule and of a "
                f"moving average, got {' and '.join(wrong)}. Set scheduler='constant' and "
                f"ema_decay=0 (--scheduler constant --ema 0)."
            )

    def _outside_open_ranges(self) -> Iterator[str]:
        for name in ("ema_decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must be in [0, 1), got {getattr(self, name)}."
        if not 0 < self.gamma <= 1:
            yield f"gamma must be above 0 and at most 1, got {self.gamma}."
        if not 0 < self.plateau_factor < 1:
            yield f"plateau_factor must be above 0 and below 1, got {self.plateau_factor}."
        if self.min_lr is not None and not 0 <= self.min_lr < math.inf:
            yield f"min_lr must be a number of at least 0, got {self.min_lr}."

    def _outside(self, **ranges: tuple[float, float]) -> Iterator[str]:
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                yield f"{name} must be {limit}, got {value}."

    def _positive(self, *names: str) -> Iterator[str]:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                yield f"{name} must be above 0, got {value}."

    def _problems(self) -> Iterable[str]:
        """Return what is wrong with the strategy's own settings."""
        return ()

    @property
    def adds_adapters(self) -> bool:
        """True if it trains weights that it adds to the backbone."""
        return False

    @property
    def quantises(self) -> bool:
        """True if it puts the frozen weights of the backbone into int8."""
        return False

    @property
    def main_lr(self) -> float:
        """Learning rate of the part the strategy is named after: the setting `lr_name`."""
        return float(getattr(self, self.lr_name))

    @property
    def head_lr(self) -> float:
        """Learning rate of the head: ``lr_head``, or ten times `main_lr` where that is None."""
        own = getattr(self, "lr_head", None)
        return self.main_lr * HEAD_LR_RATIO if own is None else float(own)

    def prepare(self, backbone: Backbone) -> None:
        """Change the backbone before freezing (inject adapters)."""

    @abstractmethod
    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:
        """Yield group, learning rate, name and parameter of all in the backbone that trains."""

    def groups(self, model: FineTunable) -> list[ParameterGroup]:
        """Return the parameters that train, by learning rate."""
        native = self.native_entries(model.backbone)
        heads = {name for _, _, name, _ in native}
        entries = [
            (group, lr, f"backbone.{name}", parameter)
            for group, lr, name, parameter in self.backbone_entries(model.backbone)
            if name not in heads
        ]
        entries += [(group, lr, f"backbone.{name}", p) for group, lr, name, p in native]
        if model.head is not None:
            entries += [
                ("head", self.head_lr, f"head.{name}", parameter)
                for name, parameter in model.head.named_parameters()
            ]
        return collect(entries)

    def native_entries(self, backbone: Backbone) -> list[Entry]:
        """Return those parts of the backbone that are the head in use.

        They were trained with it, so they have its learning rate and not that of a new head, unless
        ``lr_head`` is given.
        """
        lr = self.main_lr if getattr(self, "lr_head", None) is None else self.head_lr
        return [
            ("head", lr, name, parameter)
            for name, parameter in backbone.named_parameters()
            if backbone.layer_of(name).kind == "head"
        ]

    def describe_rates(self, model: FineTunable) -> str:
        """Say the peak learning rate of each part that trains, in a sentence; after `setup`.

        The rate that epoch lines and histories show as ``lr`` is that of the head where there is
        one.
        """
        rates: dict[str, list[float]] = {}
        for group in self.groups(model):
            name = group.name.partition(".")[0]  # "block.47" is one of the blocks
            rates.setdefault(_PLURALS.get(name, name), []).append(group.lr)
        texts = []
        for name, values in rates.items():
            low, high = min(values), max(values)
            texts.append(f"{name} {high:.1e}" if low == high else f"{name} {low:.1e} to {high:.1e}")
        shown = "head" if "head" in rates else next(iter(rates), "")
        return f"Peak learning rates: {', '.join(texts)}; lr is that of {shown}"

    def setup(self, model: FineTunable, *, seed: int = 0) -> None:
        """Make `model` ready to train: inject what has to be, freeze the rest.

        The trainable set is exactly the set in `groups`; everything else is frozen.

        Parameters
        ----------
        model
            Changed in place.
        seed
            Seed of the weights of injected parts; torch's own generator stays as it was.

        Raises
        ------
        RunError
            If the model is merged, or nothing would train.
        """
        if lora.is_merged(model.backbone):
            raise RunError(
                "The adapters are merged into the weights. Call model.unmerge() before training."
            )
        if int8.holds_int8(model.backbone) and not self.quantises:
            raise RunError(
                "The blocks of this model are in int8, which LoRAFinetune(base='int8') alone "
                "trains on. Use that, or build the model again without base='int8'."
            )
        with seeded(seed):
            self.prepare(model.backbone)
        trainable = {id(p) for group in self.groups(model) for _, p in group.parameters}
        if not trainable:
            raise RunError(
                f"{type(self).__name__} trains nothing on this model: it has no head with weights "
                f"of its own or modules, and the strategy unfreezes no part of the backbone. "
                f"Pass head=... to the model, or use another strategy."
            )
        for _, parameter in model.named_parameters():
            parameter.requires_grad_(id(parameter) in trainable)
        model.strategy = self

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings as plain values."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> FinetuneStrategy:
        """Make a strategy from `to_dict` or from a section of a settings file.

        Raises
        ------
        ConfigError
            If the name is missing, or it or a setting is unknown; the text holds the nearest one.
        """
        settings = dict(settings)
        if "name" not in settings:
            names = ", ".join(sorted(STRATEGIES))
            raise ConfigError(f"The settings name no strategy. Add name: one of {names}.")
        cls = STRATEGIES[settings.pop("name")]
        built: FinetuneStrategy = build(cls, settings)
        return built


def _is_a(kind: type, value: object) -> bool:
    """Return whether a value is of a plain type; true and false are no numbers, whole numbers are.

    YAML reads 1e-4 (without a point) as text, so this meets more than typing errors.
    """
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else int)
