"""A backbone with heads and tasks, and the record of how they were trained."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from molfun.backbones.base import Backbone
from molfun.backbones.kernels import Kernels, choose_kernels
from molfun.config import check_seed
from molfun.errors import ConfigError, DataError
from molfun.fingerprint import combine_digests
from molfun.models import base_weights, trained_on
from molfun.models.build import (
    HeadSettings,
    as_settings,
    augmented,
    build_backbone,
    build_task_head,
    named_heads,
    resolve_device,
)
from molfun.models.loaders import doubtful_in
from molfun.models.training_record import TrainingRecord
from molfun.nn import bf16, int8, lora
from molfun.nn.allocator import keep_large_buffers, return_large_buffers
from molfun.nn.kernels import matrix_kernel, multiplies_batches
from molfun.nn.process import settled
from molfun.nn.substitutions import SubstitutionTable
from molfun.strategies.base import FinetuneStrategy
from molfun.tasks.base import Task
from molfun.text import counted, listing
from molfun.training.task_head import TaskHead, as_module, chains_read

logger = logging.getLogger(__name__)


class AssembledModel(nn.Module):
    """The parts of a model and their state; `MolfunStructureModel` adds `fit`, `predict` and so on.

    Attributes
    ----------
    backbone
        Model that computes representations.
    heads
        One `molfun.training.task_head.TaskHead` per thing that is predicted; a bare backbone has
        none.
    head
        The only head, or all by their names; None for a bare backbone.
    strategy
        Strategy of the last training; None before.
    weights
        File the base weights came from, which checkpoints refer to; None where there is none.
    base_digests, base_fingerprint
        Digest of each base tensor by name, and one digest of all of them with the architecture.
    random_base
        Whether the base weights are random where pretrained ones are usual.
    precision
        Fabric's name of the precision the model computes in.
    result
        Row of the history from the epoch that the current weights were taken from.
    data_settings
        Settings with which the training set prepared its inputs.
    training_inputs
        Digests of the inputs that the model was trained on.
    training_record
        What tells how far samples are from the training rows; None before `fit`.
    training_set
        Data of the last `fit` in this process, for baselines.
    base_scores
        Zero-shot scores of variants by the weights before the first `fit`; None where the data of
        no `fit` were variants of a known wild type, or the backbone predicts no residues.
    n_fits
        Number of calls of `fit` so far.
    """

    base_digests: dict[str, str]
    base_fingerprint: str

    @settled()
    def __init__(
        self,
        backbone: str = "openfold",
        *,
        config: Any = None,
        weights: str | Path | base_weights.Stored | None = None,
        device: str | torch.device = "auto",
        head: str | None = None,
        head_config: Mapping[str, Any] | None = None,
        task: str | None = None,
        task_config: Mapping[str, Any] | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
        backbone_config: Mapping[str, Any] | None = None,
        kernels: Kernels = "auto",
        trust: bool = False,
        base: int8.Base = "float32",
        augment: str | None = None,
    ) -> None:
        super().__init__()
        check_seed(seed)
        place = resolve_device(device)
        # glibc gives freed large buffers back to the system, and the page faults of the next ones
        # cost up to two thirds of a forward pass (docs/performance.md, OpenFold, 256 residues).
        # Kept, they would leave holes the size of float layers between those in int8, and of blocks
        # of which a process holds a part
        settings = as_settings("backbone_config", backbone_config)
        if place.type == "cpu":
            small = base == "int8" or settings.get("mmap")
            (return_large_buffers if small else keep_large_buffers)()
        self.backbone: Backbone = build_backbone(
            backbone,
            settings,
            config=config,
            weights=None if isinstance(weights, base_weights.Stored) else weights,
            seed=seed,
            trust=trust,
            base=base,
        )
        self._note_weights(weights, seed)
        self.heads: tuple[TaskHead, ...] = ()
        self.head: nn.Module | None = None
        only = HeadSettings(head, head_config, task, task_config)
        wanted = augmented(named_heads(only, heads, self.backbone), augment)
        self.put_heads(wanted, seed=seed)
        self.strategy: FinetuneStrategy | None = None
        self.result: dict[str, Any] = {}
        self.data_settings: dict[str, Any] = {}
        self.training_inputs = trained_on.NOTHING
        self.training_record: TrainingRecord | None = None
        self.training_set = trained_on.TrainingSet()
        self.base_scores: SubstitutionTable | None = None
        self.n_fits = 0
        self.precision = "32-true"
        self.note_base()
        # eval from the start, so that `predict` without `fit` has no dropout
        self.to(place).eval()
        # last, since the self-test of the kernels runs the model where it will stay
        choose_kernels(self.backbone, kernels)

    def _note_weights(self, weights: str | Path | base_weights.Stored | None, seed: int) -> None:
        """Note where the base weights came from, and warn of random ones where that is unusual."""
        file = None if isinstance(weights, base_weights.Stored) else weights
        # checkpoints hold the weights themselves if reading their file needs the user's trust
        named = file is not None and self.backbone.names_weights
        self.weights = base_weights.as_given(str(file)) if named else None
        self.random_base = file is None and not self.backbone.starts_random
        if weights is None:
            logger.log(
                logging.WARNING if self.random_base else logging.INFO,
                "%s starts from random weights (seed %d): good for tests, not for science. Pass "
                "weights=... (--weights FILE) to start from a pretrained model; weights/README.md "
                "lists the files and where they come from.",
                self.backbone.display_name,
                seed,
            )

    def put_heads(self, settings: Mapping[str, HeadSettings], *, seed: int) -> None:
        """Replace the heads and tasks by new, untrained ones."""
        self.hold(
            # one seed per head: two heads of one class must not start with equal weights
            build_task_head(name, one, backbone=self.backbone, seed=seed + i)
            for i, (name, one) in enumerate(settings.items())
        )

    def hold(self, heads: Iterable[TaskHead]) -> None:
        """Make these the heads of the model."""
        self.heads = tuple(heads)
        chains_read(self.heads)  # refuses heads that do not go together
        self.head = as_module(self.heads)
        self.backbone.serve(self.heads)

    def note_base(self) -> None:
        """Make the current weights the base that later checkpoints are compared with."""
        self.base_digests = self.backbone.base_digests()
        self.base_fingerprint = combine_digests(self.backbone.config_dict, self.base_digests)

    def need_heads(self, verb: str) -> tuple[TaskHead, ...]:
        """Return the heads with their tasks, at least one.

        Raises
        ------
        ConfigError
            If there is none; `verb` names the method that needs one.
        """
        if not self.heads:
            usual = self.backbone.default_head
            raise ConfigError(f"{verb} needs a head. Build the model with head={usual!r}.")
        return self.heads

    @property
    def task(self) -> Task | None:
        """The task of the only head; None for a bare backbone.

        Raises
        ------
        ConfigError
            If there are several heads.
        """
        if len(self.heads) > 1:
            names = ", ".join(part.name for part in self.heads)
            raise ConfigError(f"The model has several heads ({names}): look at model.heads.")
        return self.heads[0].task if self.heads else None

    @property
    def head_name(self) -> str | None:
        """Registered name of the only head; None where there is none, or several."""
        return self.heads[0].head_name if len(self.heads) == 1 else None

    @property
    def task_name(self) -> str | None:
        """Registered name of the only task; None where there is none, or several."""
        return self.heads[0].task_name if len(self.heads) == 1 else None

    @settled()
    def check(self, *data: Any) -> Self:
        """Check that the backbone can use every sample of these data sets or loaders.

        Data that is not made of samples (dicts of tensors) is not checked.

        Raises
        ------
        DataError
            Listing all samples that it cannot use.
        """
        n, problems = self.backbone.problems(doubtful_in(data, self.backbone))
        if problems:
            raise DataError(
                f"{counted(n, 'sample')} cannot be used with {self.backbone.display_name}:\n"
                f"{listing(problems)}\nRepair them or remove their rows."
            )
        return self

    @settled()
    def merge(self) -> Self:
        """Merge the adapters into the weights: the same predictions without the extra layers.

        Weights in int8 become float32 first, as large as they were: the numbers are the same, and
        predictions differ by no more than the rounding of another order of sums. `unmerge` goes
        back to int8.
        """
        if lora.installed_spec(self.backbone) is None:
            logger.warning("merge: the model has no adapters; nothing to do.")
        elif lora.is_merged(self.backbone):
            logger.warning("merge: the adapters are merged already; nothing to do.")
        else:
            lora.merge(self.backbone)
        return self

    @settled()
    def unmerge(self) -> Self:
        """Separate merged adapters again; the base weights are restored bit by bit."""
        if lora.is_merged(self.backbone):
            lora.unmerge(self.backbone)
        else:
            logger.warning("unmerge: the adapters are not merged; nothing to do.")
        return self

    @property
    def device(self) -> torch.device:
        """Device that holds the weights."""
        return next(self.parameters()).device

    def count_parameters(self, *, trainable: bool = False) -> int:
        """Return the number of parameters of backbone and heads, or of the trainable ones."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def summary(self) -> str:
        """Return a text table of all and of trainable parameters, per part."""
        return parameter_table(self)

    def __repr__(self) -> str:
        n_backbone = sum(p.numel() for p in self.backbone.parameters())
        text = f"{self.backbone.name}, {n_backbone:,} params"
        for part in self.heads:
            n_head = sum(p.numel() for p in part.head.parameters())
            text += f"; head {part.key(part.head_name)}, {n_head:,} params"
        return f"{type(self).__name__}({text}; {self.device})"


# Summary


def parameter_table(model: AssembledModel) -> str:
    """Return a text table of all and of trainable parameters, per part."""
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = rows.setdefault(_part_of(name, model.backbone), [0, 0])
        entry[0] += parameter.numel()
        entry[1] += parameter.numel() if parameter.requires_grad else 0
    total = [sum(row[i] for row in rows.values()) for i in (0, 1)]
    lines = [f"{'part':<20}{'parameters':>14}{'trainable':>14}"]
    lines += [f"{part:<20}{n:>14,}{t:>14,}" for part, (n, t) in rows.items()]
    share = 100 * total[1] / max(total[0], 1)
    lines.append(f"{'total':<20}{total[0]:>14,}{total[1]:>14,}  ({share:.2f} %)")
    return "\n".join(lines)


def _part_of(name: str, backbone: Backbone) -> str:
    if name.startswith("head."):
        return "head"
    if lora.is_adapter(name):
        return "adapters"
    kind = backbone.layer_of(name.removeprefix("backbone.").replace(".base_layer", "")).kind
    return {"block": f"{len(backbone.blocks())} blocks"}.get(kind, kind.replace("_", " "))


# Precision and kernels


_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def use_precision(model: AssembledModel, precision: str) -> None:
    """Set the precision of the model for training, validation and prediction.

    A model that trained in bf16 and predicted in float32 would not reproduce its metrics.
    """
    model.precision = precision
    model.backbone.set_precision(precision)


def autocast(model: AssembledModel) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the model computes in its precision."""
    dtype = _HALF.get(model.precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def arithmetic_of(model: AssembledModel) -> str:
    """Describe kernels, device and matrix products, on which the last bits of results depend."""
    # on a CPU, torch's product and oneDNN's add up in different orders
    products = matrix_kernel() if model.device.type == "cpu" else "torch"
    return f"{model.backbone.kernels} on {model.device.type}, products by {products}"


def attention_of(model: AssembledModel) -> str:
    """Describe which attention of packed sequences runs, for what is kept of its results."""
    half = model.precision == "bf16-mixed"
    own = model.device.type == "cpu" and (bf16.units() if half else multiplies_batches())
    return "attention by products" if own else "attention by torch"
