"""The base of kinds of data: how each is opened, and what a run on it needs."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import create_model

from molfun.config import Settings, option
from molfun.errors import ConfigError
from molfun.registry import BACKBONES, DATASETS
from molfun.strict import must_set

if TYPE_CHECKING:
    from molfun.data.base import SampleDataset

_MUST_SET = {
    "name": "Registered name.",
    "title": 'The samples, for people, in the plural: "time series".',
    "backbone": "A backbone that takes them, for advice.",
}
T = TypeVar("T", bound=Settings)

CLASSES: dict[str, Literal["class", "classes"]] = {
    "binary": "class",
    "multiclass": "class",
    "multilabel": "classes",
}
"""Tasks whose labels are names of classes."""


TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
"""Endings of tables; those that are texts may also end in ``.gz``."""


@dataclass(frozen=True)
class Labels:
    """Task and level that the labels of a run are for.

    Parameters
    ----------
    task
        Registered name of the task.
    level
        ``"sequence"`` or ``"residue"``: what has a label.
    required
        Whether every sample must have one (True), or there only has to be a column for them
        (``"column"``), as where a model has several heads.
    """

    task: str
    level: str = "sequence"
    required: Literal[True, "column"] = True

    @property
    def form(self) -> Literal["number", "class", "classes"]:
        """Form of a label in a table."""
        return CLASSES.get(self.task, "number")


class TableSettings(Settings):
    """Settings that all kinds read from tables share."""

    id_column: str | None = option(None, "Column of ids.", panel="Data", hidden=True, again=True)
    target_column: str | None = option(
        None, "Column of labels.", panel="Data", again=True, of_head=True
    )
    weight_column: str | None = option(
        None, "Column of weights of training samples in the loss.", panel="Data", hidden=True,
        of_head=True,
    )  # fmt: skip
    max_length: int | None = option(
        None, "Crop longer samples (structures around the interface).", panel="Data", again=True,
        ge=1,
    )  # fmt: skip


class DataKind(ABC):
    """One kind of data: how it is opened, and what a run on it needs by default.

    A subclass sets the attributes and writes `open` and `reopen`. Its module must import neither
    torch nor numpy before one of them is called: ``molfun --help`` reads the settings. A class that
    lacks an attribute is refused when it is made.

    Raises
    ------
    ContractError
        If a subclass lacks an attribute.

    Examples
    --------
    >>> kind = DATASETS["sequences"]()
    >>> kind.default_batch_size, kind.columns["target_column"]
    (8, 'target')
    """

    name: ClassVar[str]
    """Registered name, to which `Backbone.inputs` refers."""
    title: ClassVar[str]
    """The samples, for people, in the plural: "time series"."""
    backbone: ClassVar[str]
    """A backbone that takes them; for advice in errors."""
    settings: ClassVar[type[Settings]] = Settings
    """Settings of this kind alone, by default none; several kinds may share a base such as
    `TableSettings`."""

    columns: ClassVar[Mapping[str, str]] = {}
    """Default of each setting that names a column and may be left out."""
    default_batch_size: ClassVar[int] = 1
    """Samples per batch where the settings name no size."""
    batches_per_step: ClassVar[int] = 1
    """Batches per optimizer step where the command line names no number."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of files that only this kind reads."""
    readers: ClassVar[Mapping[str, str]] = {}
    """Functions that read files in Python, by the ending of the file; for advice in errors."""
    chosen_by: ClassVar[tuple[str, ...]] = ()
    """Settings that choose this kind for a backbone that takes several; by default the others."""
    takes_several_files: ClassVar[bool] = False
    """True if ``data`` may be a list of files."""
    takes_several_targets: ClassVar[bool] = False
    """True if one label may be the numbers of several columns, for the task ``multitarget``."""
    has_demo: ClassVar[bool] = False
    """True if `demo` makes samples."""
    beside: ClassVar[str] = ""
    """Name of the files of `write_beside`, for the terminal."""
    groups_by: ClassVar[str | None] = None
    """Column of `SampleDataset.metadata` with the group of each sample, whatever the table calls
    it, where every split keeps groups whole."""

    objective: ClassVar[str | None] = None
    """Objective of pre-training where none is named; None if there is no pre-training."""
    unit: ClassVar[str] = "residues"
    """Unit of the length of a sample, in the plural."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "data kind", _MUST_SET)

    @abstractmethod
    def open(
        self, settings: Any, labels: Labels, *, like: SampleDataset | None = None
    ) -> SampleDataset:
        """Open the data of a run.

        Parameters
        ----------
        settings
            Settings of the run: ``data`` and those of this kind.
        labels
            Task and level of the labels.
        like
            Training set whose inputs this one must have, for a file of validation or test samples.

        Raises
        ------
        DataError
            If a file is missing or bad.
        """

    @abstractmethod
    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> SampleDataset:
        """Open samples for a trained model, prepared as its training set was.

        Parameters
        ----------
        trained
            `SampleDataset.input_settings` of the training set, from the checkpoint.
        given
            ``data``, and settings that the user gives in place of those of the training.
        labels
            True if every sample must have a label.

        Raises
        ------
        ConfigError
            If something that only the user knows is not given.
        DataError
            If a file is missing or bad.
        """

    def holds(self, item: Any) -> bool:
        """Return whether an item of a user's list or data set is already a sample of this kind."""
        return False

    def from_items(self, items: Sequence[Any]) -> SampleDataset:
        """Make a data set of items that `holds` accepts."""
        raise NotImplementedError  # reached only if `holds` promises what is not there

    def open_unlabelled(
        self, path: str, settings: Any, *, like: SampleDataset | None = None
    ) -> SampleDataset:
        """Open inputs alone, for pre-training and embeddings; `like` is as in `open`."""
        raise NotImplementedError  # reached only if `objective` promises what is not there

    def prepare_unlabelled(
        self,
        train: Any,
        val: Any,
        settings: Any,
    ) -> tuple[Any, Any]:
        """Change the parts of a split, as the last step before pre-training."""
        return train, val

    def validation_fraction(self, n: int) -> float:
        """Return the fraction of `n` unlabelled samples that validates pre-training."""
        return 0.01

    def data_of(self, settings: Any) -> str | None:
        """Return the setting that stands for ``data`` where that is not given; None for none."""
        return None

    def derive(
        self,
        dataset: SampleDataset,
        settings: Any,
        labels: Labels,
    ) -> SampleDataset | None:
        """Return the samples of another of several heads with the labels of this one.

        None where they have to be opened, which reads the files again.
        """
        return None

    def prepare_training(self, train: Any, settings: Any) -> Any:
        """Return the training set as `fit` shall see it, the last step before training."""
        return train

    def missing(self, settings: Any) -> str | None:
        """Say what has to be given before this kind can be opened; None if all is there."""
        return None if settings.data else f"give --data FILE of {self.title}, to train on"

    def problems(self, settings: Any, labels: Labels) -> list[str]:
        """Return a sentence for each pair of settings that do not go together."""
        return []

    def notes(self, dataset: Any, where: str) -> list[str]:
        """Return lines for the user on what was read; `where` says where the details are."""
        return []

    def backbone_arguments(
        self,
        settings: Any,
        parts: Sequence[Any],
    ) -> dict[str, Any]:
        """Return arguments of the backbone that follow from training, validation and test set."""
        return {}

    def task_arguments(self, settings: Any, labels: Labels, dataset: Any) -> dict[str, Any]:
        """Return arguments of the task, from settings of this kind and the training set."""
        return {}

    def demo(self, n: int, length: int) -> SampleDataset:
        """Make `n` synthetic samples of that length."""
        raise NotImplementedError  # reached only if `has_demo` promises what is not there

    def label_of_head(self, labels: Labels) -> str | None:
        """Setting that names the labels of one of several heads; by default they are called as it.

        None where they have names already, or the samples of this kind have one label each.
        """
        return "target_column" if "target_column" in self.settings.model_fields else None

    def problems_of_heads(self, settings: Any) -> list[str]:
        """Sentences on settings that do not go with several heads."""
        if any(self.settings.flag(name).of_head for name in self.settings.model_fields):
            return []
        return [f"heads: {self.title} have one label each, so one head is trained on them."]

    def column(self, settings: Any, name: str) -> Any:
        """Name of a column: the given one, or the default of this kind."""
        return getattr(settings, name) or self.columns.get(name)

    def files_beside(self, table: Path) -> list[Path]:
        """Return the files that `write_beside` may write next to a table of predictions."""
        return []

    def write_beside(
        self,
        table: Path,
        result: Mapping[str, Any],
        dataset: Any,
        maker: Callable[[], Any],
    ) -> Path | None:
        """Write predictions that no table holds; give the file, None if there were none.

        `maker` names software and weights (`molfun.structures.folded.Maker`), for formats that
        have a place for them. It is a function because it reads the file of weights.
        """
        return None


def with_kinds(run: type[T]) -> type[T]:
    """Join the settings of a run with those of every kind of data.

    Raises
    ------
    ConfigError
        If a kind has a setting of the same name as another one of the run or of another kind.
    """
    settings = (kind.settings for kind in DATASETS.classes())
    own = dict.fromkeys(cls for cls in settings if cls is not Settings)
    return _joined(run, tuple(own))


@functools.lru_cache
def _joined(run: type[T], settings: tuple[type[Settings], ...]) -> type[T]:
    known: dict[str, tuple[type[Settings], Any]] = {}
    bases: tuple[type[Any], ...] = (run, *settings)
    for cls in bases:
        for name, field in cls.model_fields.items():
            other, same = known.setdefault(name, (cls, field))
            if (field.annotation, field.default) != (same.annotation, same.default):
                raise ConfigError(
                    f"The setting {name!r} of {cls.__name__} differs from that of "
                    f"{other.__name__}. Rename one of them, or give both one type and default."
                )
    return create_model(run.__name__, __base__=bases, __doc__=run.__doc__)


def kind_of(backbone: str, values: Mapping[str, Any]) -> DataKind:
    """Return the kind of data that a backbone takes with these settings.

    A backbone that takes several kinds takes the first of them that a given setting chooses, else
    the one that alone reads files with the ending of ``data``, else the first that needs no such
    setting.

    Parameters
    ----------
    backbone
        Registered name or alias.
    values
        Settings by name.

    Examples
    --------
    >>> kind_of("openfold", {}).name
    'structures'
    >>> [kind_of("esm2", values).name for values in ({}, {"pdbs": "folder"})]
    ['sequences', 'structures']
    """
    kinds = kinds_of(backbone)
    return [*_chosen(kinds, values), *(k for k in kinds if not k.chosen_by), *kinds][0]


def is_chosen(kind: DataKind, values: Mapping[str, Any]) -> bool:
    """Return True if a setting, or the ending of ``data``, says that the data is of this kind."""
    return bool(_chosen([kind], values))


def _chosen(kinds: Sequence[DataKind], values: Mapping[str, Any]) -> list[DataKind]:
    by_setting = [k for k in kinds if any(values.get(name) is not None for name in k.chosen_by)]
    return [*by_setting, *(k for k in kinds if is_of(type(k), values.get("data")))]


def kinds_of(backbone: str) -> list[DataKind]:
    """Return the kinds of data that a backbone takes, in its order of preference."""
    return [DATASETS[name]() for name in BACKBONES.about(backbone, "inputs")]


def is_of(kind: type[DataKind], path: Any) -> bool:
    """Return whether the name of a file says that only this kind of data is in it."""
    name = str(path or "").lower().removesuffix(".gz")
    return bool(kind.suffixes) and name.endswith(kind.suffixes)
