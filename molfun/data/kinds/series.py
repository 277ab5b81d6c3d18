"""Time series with missing values: arrays, tables, archive files, trajectories."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator, model_validator

from molfun.config import option
from molfun.data.kinds.base import TABLES, DataKind, Labels, TableSettings
from molfun.text import names_in

if TYPE_CHECKING:
    from molfun.data.base import SampleDataset
    from molfun.data.series.dataset import TimeSeriesDataset

logger = logging.getLogger(__name__)

PANEL = "Time series"
VALIDATION, FEWEST = 0.1, 16
"""Fraction of the series that validates pre-training, and the least number that says something."""


class SeriesSettings(TableSettings):
    """Settings of a file of time series: how it is read and cut."""

    layout: Literal["long", "wide"] = option(
        "long", "One row per time step (long) or per series (wide).", panel=PANEL
    )
    time_column: str = option("time", "Column of times.", panel=PANEL, hidden=True)
    feature_columns: list[str] | None = option(
        None, "Columns of values, as hr,bp.", panel=PANEL, shown="all without another role"
    )
    window: int | None = option(
        None, "Cut series into windows of so many steps.", panel=PANEL, ge=1
    )
    stride: int | None = option(
        None, "Steps from one window to the next.", panel=PANEL, shown="window", hidden=True, ge=1
    )

    _listed = field_validator("feature_columns", mode="before")(names_in)

    @model_validator(mode="after")
    def _cuts_or_not(self) -> Self:
        if self.stride is not None and self.window is None:
            raise ValueError("stride is for windows: give --window as well")
        return self


class Series(DataKind):
    """Series of numbers, whole or in windows."""

    name = "series"
    title = "time series"
    backbone = "timeseries"
    settings = SeriesSettings
    columns = {"target_column": "target"}  # noqa: RUF012
    default_batch_size = 32
    suffixes = (".ts", ".npy", ".npz")
    readers = {  # noqa: RUF012
        ".ts": "TimeSeriesDataset.from_ts",
        ".npy": "TimeSeriesDataset.from_numpy",
        ".npz": "TimeSeriesDataset.from_numpy",
    }
    groups_by = "group"
    objective = "mae"
    unit = "time steps"

    def problems(self, settings: Any, labels: Labels) -> list[str]:
        """Refuse names of columns of a file that has none."""
        if settings.feature_columns is None or is_table(settings.data):
            return []
        return ["feature_columns is for tables of time series."]

    def problems_of_heads(self, settings: Any) -> list[str]:
        """Ask for the features: by default a column of labels would be one for the other heads."""
        if is_table(settings.data) and settings.feature_columns is not None:
            return []
        return [
            "heads: several heads need a table, and feature_columns (--feature-columns): other "
            "columns may be labels."
        ]

    def open(
        self, settings: Any, labels: Labels, *, like: SampleDataset | None = None
    ) -> TimeSeriesDataset:
        """Read a file as its name says, with the features of `like`."""
        options = {"labels": labels.form, "require_target": labels.required}
        dataset = self._read(settings.data, settings, options, like)
        if labels.form == "number" and any(isinstance(target, str) for target in dataset.targets):
            logger.warning(
                "%s names the classes of its labels (@classLabel), and they are read as numbers, "
                "which ranks them. Add --task multiclass, or binary for two classes.",
                settings.data,
            )
        return cut(dataset, settings.window, settings.stride)

    def open_unlabelled(
        self, path: str, settings: Any, *, like: SampleDataset | None = None
    ) -> TimeSeriesDataset:
        """Read whole series; a column of labels is left out, whatever is in it."""
        return self._read(path, settings, {"labels": "class", "require_target": False}, like)

    def _read(
        self, path: str, settings: Any, options: dict[str, Any], like: SampleDataset | None
    ) -> TimeSeriesDataset:
        """Read a file; names of columns, and `options` of labels, are for tables."""
        from molfun.data.series.dataset import TimeSeriesDataset, open_timeseries

        if not is_table(path):
            return open_timeseries(path, max_length=settings.max_length)
        names = ("max_length", "layout", "time_column", "feature_columns", "group_column")
        options = {**{name: getattr(settings, name) for name in names}, **options}
        options["target_column"] = self.column(settings, "target_column")
        by_default = "id" if settings.layout == "long" else None
        options["id_column"] = settings.id_column or by_default
        if isinstance(like, TimeSeriesDataset):  # by name, whatever else the file holds
            options["feature_columns"] = like.feature_names
        return open_timeseries(path, **options)

    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> TimeSeriesDataset:
        """Read a file as the training set was, in its windows."""
        from molfun.data.series.dataset import open_timeseries

        merged = {**trained, **given}
        options: dict[str, Any] = {"max_length": merged.get("max_length")}
        if is_table(merged["data"]):
            names = ("layout", "id_column", "time_column", "feature_columns", "pattern",
                     "target_column", "labels", "group_column")  # fmt: skip
            options |= {name: merged[name] for name in names if merged.get(name) is not None}
            options["require_target"] = labels and trained.get("require_target", True)
        windows = trained.get("windows") or {}
        return cut(
            open_timeseries(merged["data"], **options), windows.get("length"), windows.get("stride")
        )

    def notes(self, dataset: TimeSeriesDataset, where: str) -> list[str]:
        """Say what a model learns from, and which columns are not part of it."""
        others = [str(name) for name in dataset.metadata.columns if name not in ("group", "start")]
        left = f"; kept as metadata: {', '.join(others)}" if others else ""
        return [f"Features ({dataset.n_features}): {', '.join(dataset.feature_names)}{left}"]

    def prepare_unlabelled(self, train: Any, val: Any, settings: Any) -> tuple[Any, Any]:
        """Refuse parts that share a subject, and cut both into windows."""
        from molfun.data.series.samples import check_groups

        check_groups(train=train, validation=val)
        window, stride = settings.window, settings.stride
        return cut(train, window, stride), val if val is None else cut(val, window, stride)

    def validation_fraction(self, n: int) -> float:
        """Give a tenth of the series, at least 16 of them, but never more than half.

        Examples
        --------
        >>> [round(n * Series().validation_fraction(n)) for n in (10, 24, 100, 1000)]
        [5, 12, 16, 100]
        """
        return min(0.5, max(VALIDATION, FEWEST / n))

    def backbone_arguments(
        self,
        settings: Any,
        parts: Sequence[TimeSeriesDataset],
    ) -> dict[str, Any]:
        """Number of features."""
        return {"d_input": parts[0].n_features}


def is_table(path: Any) -> bool:
    """Return whether a file of time series is a table, with columns to name."""
    return Path(str(path or "").removesuffix(".gz")).suffix.lower() in TABLES


def cut(dataset: TimeSeriesDataset, window: int | None, stride: int | None) -> TimeSeriesDataset:
    """Return the data set, in windows where a length is given."""
    return dataset if window is None else dataset.windows(window, stride=stride)
