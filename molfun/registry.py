"""Registries of parts (backbones, kinds of data, heads, ...) of Molfun and of other packages.

A part is registered under a name, as a class or as ``"package.module:Class"``, which is imported on
first use. Other packages add theirs with an entry point in the group ``molfun.<kind>``, for
example::

    [project.entry-points."molfun.heads"]
    my_head = "my_package.heads:MyHead"
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

from molfun.errors import ConfigError, ContractError, MolfunError
from molfun.strict import check_choice
from molfun.text import unknown_name

logger = logging.getLogger(__name__)


def path_of(part: Any) -> str:
    """Return ``"package.module:Class"`` of a class, a function, or the class of another object.

    Examples
    --------
    >>> path_of(Registry), path_of(functools.partial(len)), path_of(3)
    ('molfun.registry:Registry', 'builtins:len', 'builtins:int')
    """
    while isinstance(part, functools.partial):
        part = part.func
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}:{named.__qualname__}"


class Registry:
    """A mapping from names to classes that are imported on first use.

    Parameters
    ----------
    kind
        Kind of the entries in the plural ("heads"); the entry-point group is ``molfun.<kind>``.
    singular
        Kind in the singular, for messages; by default `kind` without its last letter.

    Examples
    --------
    >>> registry = Registry("fruits")
    >>> @registry.register("apple")
    ... class Apple: ...
    >>> registry["apple"] is Apple
    True
    """

    def __init__(self, kind: str, singular: str | None = None) -> None:
        self.kind = kind
        self.singular = singular or kind[:-1]
        self._entries: dict[str, Any] = {}
        self._aliases: dict[str, tuple[str, dict[str, Any]]] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._packages: dict[str, str] = {}
        self._left_out: set[str] = set()
        self._scanned = False

    def register(
        self, name: str, target: str | None = None, **about: Any
    ) -> Callable[[type], type]:
        """Register a class under `name`: as a decorator, or by its import path.

        Parameters
        ----------
        name
            Name of the entry.
        target
            ``"package.module:Class"``; None for use as a decorator.
        **about
            Class attributes that `about` can return without importing the class.
        """
        if target is not None:
            self._entries[name] = target
            self._about[name] = about

        def decorate(cls: type) -> type:
            self._check_name(name, cls)
            self._entries[name] = cls
            return cls

        return decorate

    def alias(self, name: str, target: str, **arguments: Any) -> None:
        """Make `name` stand for the entry `target` with these arguments."""
        self._aliases[name] = (target, arguments)

    def resolve(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the registered name and the preset arguments of a name or an alias.

        Examples
        --------
        >>> BACKBONES.resolve("esm2_tiny")
        ('esm2', {'config': 'esm2_tiny'})
        """
        if not isinstance(name, str):  # from a settings file, which may hold anything
            raise ConfigError(f"The name of a {self.singular} must be text, got {name!r}.")
        target, arguments = self._aliases.get(name, (name, {}))
        if target not in self:
            raise ConfigError(unknown_name(self.singular, name, self.names()))
        return target, dict(arguments)

    def names(self) -> list[str]:
        """Return the names of all entries and aliases."""
        return [*self, *self._aliases]

    def about(self, name: str, attribute: str) -> Any:
        """Return a class attribute of an entry, without importing the class if it is known already.

        Examples
        --------
        >>> BACKBONES.about("pet", "inputs")
        ('atoms',)
        """
        target, _ = self.resolve(name)
        # once the class is imported, it knows better than the registration
        known = self._about.get(target, {}) if isinstance(self._entries[target], str) else {}
        return known[attribute] if attribute in known else getattr(self[target], attribute)

    def __setitem__(self, name: str, entry: type | str) -> None:
        """Register a class or an import path under `name`."""
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Any:
        name, _ = self.resolve(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._imported(name, entry)
            self._check_name(name, entry)
            self._entries[name] = entry
        return entry

    def _imported(self, name: str, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            if name not in self._packages:
                raise  # Molfun's own parts say which package is missing, and how to get it
            raise ConfigError(
                f"The {self.singular} {name!r} of the installed package {self._packages[name]} "
                f"cannot be imported from {path!r} ({type(error).__name__}: {error}). Repair or "
                f"uninstall that package."
            ) from error

    def _check_name(self, name: str, cls: Any) -> None:
        """Refuse a class that checkpoints would refer to under another name than this one."""
        own = getattr(cls, "name", name)
        if isinstance(own, str) and own != name:
            raise ContractError(
                f"The {self.singular} {name!r} is the class {cls.__name__}, whose name is {own!r}: "
                f"a checkpoint could not find it again. Give both one name."
            )

    def is_entry(self, name: str, part: Any) -> bool:
        """Return whether `part` (an object, or its path as text) is registered under `name`.

        Nothing is imported to find out, unless an object has the path of an entry.

        Examples
        --------
        >>> LOSSES.is_entry("mse", "molfun.tasks.losses:mse")
        True
        """
        entry = self._entries[name]
        path = entry if isinstance(entry, str) else path_of(entry)
        if isinstance(part, str):
            return path == part
        return entry is part or (path == path_of(part) and self[name] is part)

    def classes(self) -> list[Any]:
        """Import all entries and return their classes.

        An entry of another package that cannot be imported is left out with a warning, so that a
        broken package does not stop runs that do not use it.
        """
        found = []
        for name in self:
            try:
                found.append(self[name])
            except MolfunError as error:
                if name not in self._packages:
                    raise
                if name not in self._left_out:
                    logger.warning("%s It is left out.", error)
                self._left_out.add(name)
        return found

    def __contains__(self, name: object) -> bool:
        self._scan()
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._scan()
        return iter(self._entries)

    def _scan(self) -> None:
        if self._scanned:
            return
        # before the loop: an entry point that uses the registry must not scan again
        self._scanned = True
        # another package adds names, and never replaces one of Molfun's
        for entry in _installed().select(group=f"molfun.{self.kind}"):
            package = entry.dist.name if entry.dist else "(unknown)"
            if entry.name in self._entries:
                logger.warning(
                    "The %s %r of the installed package %s is left out: the name is taken.",
                    self.singular, entry.name, package,
                )  # fmt: skip
                continue
            self._entries[entry.name] = entry.value
            self._packages[entry.name] = package


@functools.cache
def _installed() -> Any:
    """Return the entry points of all installed packages; finding them takes 10 % of the start."""
    return entry_points()


BACKBONES = Registry("backbones")
"""Pretrained models, `molfun.backbones.Backbone`."""
FAMILIES: dict[str, str] = {}
"""``"model_type vocab_size"`` of a transformers config to the name of its backbone."""
DATASETS = Registry("datasets")
"""Kinds of data, `molfun.data.kinds.base.DataKind`."""
DEFAULT_KIND = "structures"
"""Kind of a checkpoint that names none: those of the first versions, which knew no other."""
HEADS = Registry("heads")
"""Layers that predict from representations, `molfun.heads.Head`."""
TASKS = Registry("tasks")
"""Losses and metrics of labels, `molfun.tasks.Task`."""
LOSSES = Registry("losses", "loss")
"""Losses of regression, functions as in `molfun.tasks.losses`."""
STRATEGIES = Registry("strategies", "strategy")
"""Fine-tuning strategies, `molfun.strategies.FinetuneStrategy`."""
OBJECTIVES = Registry("objectives")
"""Self-supervised tasks, `molfun.objectives.Objective`."""
BASELINES = Registry("baselines")
"""Simple models to compare with, `molfun.evaluation.baselines.Baseline`."""
OPTIMIZERS = Registry("optimizers")
"""Optimizers for the ``optimizer`` of a strategy."""
LOGGERS = Registry("loggers")
"""Experiment trackers, `molfun.training.loggers.Logger`."""
ENCODERS = Registry("encoders")
"""Encoders of time series, `molfun.backbones.timeseries.encoders.BaseEncoder`."""
ENCODER_CONFIGS = Registry("encoder_configs")
"""Configuration classes of encoders without the attribute ``config_class``."""


def check_head(name: object) -> None:
    """Refuse what names neither a head nor a task, which stands for its default head.

    Raises
    ------
    ConfigError
        With the names of heads and tasks, and the nearest one.

    Examples
    --------
    >>> check_head("regresion")
    Traceback (most recent call last):
    molfun.errors.ConfigError: Unknown head 'regresion'; known: affinity, binary, confidence,
    contact, conv, cross_attention, energy, gaussian, linear, mlp, multiclass, multilabel,
    multitarget, pair_mlp, quantile, regression, structure. Did you mean 'regression'?
    """
    check_choice("head", name, {*HEADS, *TASKS})


# import paths and not classes: the command line reads `inputs` for its help without torch
for _name, _target, _inputs in (
    ("openfold", "molfun.backbones.openfold:OpenFoldBackbone", ("structures",)),
    ("esm2", "molfun.backbones.esm2:ESM2Backbone", ("sequences", "structures")),
    ("pet", "molfun.backbones.pet:PETBackbone", ("atoms",)),
    ("timeseries", "molfun.backbones.timeseries:TimeSeriesBackbone", ("series",)),
):
    BACKBONES.register(_name, _target, inputs=_inputs, takes_preset=_name != "pet")
for _size in (
    "esm2_t6_8M_UR50D",
    "esm2_t12_35M_UR50D",
    "esm2_t30_150M_UR50D",
    "esm2_t33_650M_UR50D",
    "esm2_t36_3B_UR50D",
    "esm2_t48_15B_UR50D",
    "esm2_tiny",
):
    BACKBONES.alias(_size, "esm2", config=_size)
BACKBONES.register(
    "transformers",
    "molfun.backbones.transformers:TransformersBackbone",
    inputs=("sequences", "structures"),
    takes_preset=True,
)
# name, class, model types and vocabulary of its configs, published sizes
for _name, _class, _types, _letters, _sizes in (
    ("esm", "EsmBackbone", ("esm",), 33, ("esm1b", "esm1v")),
    ("saprot", "SaProtBackbone", ("esm",), 446, ("saprot_35m", "saprot_650m")),
    ("esmc", "EsmcBackbone", ("esmc", "ESMplusplus"), 64, ("esmc_300m", "esmc_600m")),
    ("prott5", "ProtT5Backbone", ("t5",), 128, ("prott5_xl",)),
    ("prostt5", "ProstT5Backbone", ("t5",), 150, ()),
    ("ankh", "AnkhBackbone", ("t5",), 144, ("ankh_base", "ankh_large")),
):
    BACKBONES.register(
        _name,
        f"molfun.backbones.transformers:{_class}",
        inputs=("sequences", "structures"),
        takes_preset=True,
    )
    FAMILIES.update((f"{_type} {_letters}", _name) for _type in _types)
    for _size in _sizes:
        BACKBONES.alias(_size, _name, config=_size)
DATASETS.register("structures", "molfun.data.kinds.structures:Structures")
DATASETS.register("sequences", "molfun.data.kinds.sequences:Sequences")
DATASETS.register("series", "molfun.data.kinds.series:Series")
DATASETS.register("atoms", "molfun.data.kinds.atoms:Atoms")
DATASETS.alias("structure", "structures")
DATASETS.alias("sequence", "sequences")
DATASETS.alias("timeseries", "series")
HEADS.register("affinity", "molfun.heads.affinity:AffinityHead")
HEADS.register("linear", "molfun.heads.pooled:LinearHead")
HEADS.register("mlp", "molfun.heads.pooled:MLPHead")
HEADS.register("conv", "molfun.heads.conv:ConvHead")
HEADS.register("energy", "molfun.heads.energy:EnergyHead")
HEADS.register("structure", "molfun.heads.structure:StructureHead")
HEADS.register("contact", "molfun.heads.contact:ContactHead")
HEADS.register("confidence", "molfun.heads.confidence:ConfidenceHead")
HEADS.register("pair_mlp", "molfun.heads.chains:PairMLPHead")
HEADS.register("cross_attention", "molfun.heads.chains:CrossAttentionHead")
TASKS.register("regression", "molfun.tasks.regression:RegressionTask")
TASKS.register("gaussian", "molfun.tasks.intervals:GaussianTask")
TASKS.register("quantile", "molfun.tasks.intervals:QuantileTask")
TASKS.register("multitarget", "molfun.tasks.targets:MultiTargetTask")
TASKS.register("binary", "molfun.tasks.classification:BinaryTask")
TASKS.register("multiclass", "molfun.tasks.classification:MulticlassTask")
TASKS.register("multilabel", "molfun.tasks.classification:MultilabelTask")
TASKS.register("energy", "molfun.tasks.energy:EnergyTask")
TASKS.register("structure", "molfun.tasks.structure:StructureTask")
TASKS.register("contact", "molfun.tasks.contact:ContactTask")
for _name in ("mse", "mae", "huber", "listmle", "margin", "pairwise", "spearman"):
    LOSSES.register(_name, f"molfun.tasks.losses:{_name}")
for _name, _class in (
    ("mean", "mean:Mean"),
    ("composition", "composition:Composition"),
    ("one_hot", "one_hot:OneHot"),
    ("zero_shot", "zero_shot:ZeroShot"),
    ("one_hot_zero_shot", "zero_shot:OneHotZeroShot"),
    ("embedding_zero_shot", "zero_shot:EmbeddingZeroShot"),
    ("neighbour", "neighbour:Neighbour"),
    ("interface", "interface:Interface"),
    ("elements", "elements:Elements"),
    ("series_summary", "series_summary:SeriesSummary"),
    ("window", "window:Window"),
    ("separation", "separation:Separation"),
):
    BASELINES.register(_name, f"molfun.evaluation.baselines.{_class}")
OBJECTIVES.register("masked_lm", "molfun.objectives.masked_lm:MaskedLMObjective")
OBJECTIVES.register("mae", "molfun.objectives.mae:MAEObjective")
OBJECTIVES.register("contrastive", "molfun.objectives.contrastive:ContrastiveObjective")
OBJECTIVES.register("jepa", "molfun.objectives.jepa:JEPAObjective")
ENCODERS.register(
    "transformer", "molfun.backbones.timeseries.encoders.transformer:TransformerEncoder"
)
ENCODERS.register("gru_d", "molfun.backbones.timeseries.encoders.gru_d:GRUDEncoder")
ENCODERS.register("linear", "molfun.backbones.timeseries.encoders.linear:LinearEncoder")
STRATEGIES.register("head_only", "molfun.strategies.head_only:HeadOnlyFinetune")
STRATEGIES.register("lora", "molfun.strategies.lora:LoRAFinetune")
STRATEGIES.register("partial", "molfun.strategies.partial:PartialFinetune")
STRATEGIES.register("full", "molfun.strategies.full:FullFinetune")
STRATEGIES.register("gradual", "molfun.strategies.gradual:GradualFinetune")
OPTIMIZERS.register("adam", "torch.optim:Adam")
OPTIMIZERS.register("adamw", "torch.optim:AdamW")
OPTIMIZERS.register("sgd", "torch.optim:SGD")
OPTIMIZERS.register("adafactor", "torch.optim:Adafactor")
OPTIMIZERS.register("muon", "molfun.nn.muon:MuonWithAdamW")
OPTIMIZERS.register("schedule_free_adamw", "molfun.nn.schedule_free:schedule_free_adamw")
LOGGERS.register("csv", "molfun.training.loggers.csv_file:CSVLogger")
LOGGERS.register("tensorboard", "molfun.training.loggers.tensorboard:TensorBoardLogger")
LOGGERS.register("wandb", "molfun.training.loggers.wandb:WandbLogger")
LOGGERS.register("mlflow", "molfun.training.loggers.mlflow:MLflowLogger")
