"""Tables of time series: one row per time step (long), or one row per series (wide)."""

from __future__ import annotations

import logging
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from molfun._shapes import Float32, Float64, Int64
from molfun.data.cells import Cells, Required, read_cells, repeated_ids
from molfun.data.columns import typed
from molfun.data.labels import LabelForm, label_array, label_parser, parse_number
from molfun.data.series.arrays import (
    SeriesTable,
    numbered,
    parse_times,
    parse_values,
    warn_uneven,
)
from molfun.data.series.suspects import Rows, kind_of_name
from molfun.data.tables import Table
from molfun.data.texts import listed
from molfun.errors import ConfigError, TableError
from molfun.text import counted, listing, names_in, shown

logger = logging.getLogger(__name__)

Layout = Literal["long", "wide"]
"""Tables with one row per time step, or with one row per series."""

TEMPLATE = "{feature}_{time}"


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """Layout and columns of a table; see `TimeSeriesDataset.from_csv`."""

    layout: Layout = "long"
    id_column: str | None = "id"
    time_column: str = "time"
    feature_columns: Sequence[str] | str | None = None
    pattern: str = TEMPLATE
    target_column: str | None = "target"
    labels: LabelForm = "number"
    group_column: str = "group"
    require_target: Required = True

    def __post_init__(self) -> None:
        if self.feature_columns is not None:
            object.__setattr__(self, "feature_columns", self._named_features())

    def _named_features(self) -> list[str]:
        """Return the features that are named, as a list, without the id and the label.

        Raises
        ------
        ConfigError
            If there is none, one is named twice, or one is no feature.
        """
        names = list(names_in(self.feature_columns))
        if not names:
            raise ConfigError(
                "feature_columns is empty (--feature-columns). Name the features, or leave it out "
                "to read all columns without another role."
            )
        if wrong := [name for name in names if not (isinstance(name, str) and name)]:
            raise ConfigError(
                f"feature_columns holds {', '.join(map(repr, wrong))}, which is no column's name."
            )
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ConfigError(
                f"feature_columns names {', '.join(map(repr, twice))} more than once. Name each "
                f"feature once."
            )
        if self.layout == "long":
            self._refuse_roles(names)
        return names

    def _refuse_roles(self, features: Sequence[str]) -> None:
        """Refuse the id and the label as features."""
        roles = {self.target_column: "label", self.id_column: "id"}
        for name in features:
            if name in roles:
                raise ConfigError(
                    f"feature_columns names {name!r}, which is the column of the {roles[name]} and "
                    f"cannot be a feature. Leave it out, or name another column with "
                    f"{'target' if roles[name] == 'label' else 'id'}_column."
                )

    def needed_columns(self) -> dict[str, str]:
        """Return the columns that a table of this format must have, with their settings."""
        needed = {self.id_column: "id_column"} if self.id_column else {}
        if self.layout == "long":
            needed[self.time_column] = "time_column"
            needed |= dict.fromkeys(self.feature_columns or [], "feature_columns")
        if self.target_column and self.require_target:
            needed[self.target_column] = "target_column"
        if self.group_column != "group":
            needed[self.group_column] = "group_column"
        return needed

    def say_odd_features(self, path: Path) -> None:
        """Say which of the features that are named have another meaning."""
        if self.layout != "long":
            return
        roles = {self.group_column: "group", self.time_column: "time"}
        for name in self.feature_columns or ():
            kind = roles.get(name) or kind_of_name(name)
            if kind in ("group", "split", "time"):
                of = f"is the column of the {kind}" if name in roles else f"is named like a {kind}"
                logger.warning(
                    "%s: the feature %r, named in feature_columns, %s. It is taken as named.",
                    path, name, of,
                )  # fmt: skip


def read_series_table(path: Path, form: TableFormat) -> SeriesTable:
    """Read a CSV, TSV or Parquet table in either layout.

    Raises
    ------
    ConfigError
        If the format is contradictory.
    TableError
        If a column is missing or any row is bad; all of them are listed.
    """
    if form.layout == "long" and form.id_column is None:
        raise ConfigError("A long table needs id_column: it says which rows are one series.")
    key = form.id_column or form.target_column or ""
    cells = read_cells(path, key)
    cells.require(form.needed_columns())
    form.say_odd_features(path)
    reader = _TableReader(cells, form)
    return reader.read_long() if form.layout == "long" else reader.read_wide()


@dataclass
class _TableReader:
    """The cells of a table, with every problem noted."""

    cells: Cells
    form: TableFormat

    def __post_init__(self) -> None:
        if not len(self.cells):
            self.cells.raise_problems()
        self.target = self._present(self.form.target_column)
        self.group = self._present(self.form.group_column)

    def _present(self, name: str | None) -> str | None:
        return name if name in self.cells.header else None

    def _others(self) -> list[str]:
        """Return the columns without a role."""
        roles = {self.form.id_column, self.target, self.group}
        if self.form.layout == "long":
            roles.add(self.form.time_column)
        return [name for name in self.cells.header if name not in roles]

    def _numbers(
        self, column: str, parse: Callable[..., Any] = parse_values
    ) -> Float64[np.ndarray, "rows"]:
        texts = self.cells.column(column)
        values, bad = parse(texts)
        hint = "" if self.form.feature_columns or parse is parse_times else _NAME_FEATURES
        if hint and len(bad) == len(texts):
            self.cells.problems.append(f"column {column} holds no numbers{hint}")
            return np.asarray(values)
        for row, problem in bad:
            self.cells.note(row, column, f"{shown(texts[row])} {problem}")
        return np.asarray(values)

    # Long

    def read_long(self) -> SeriesTable:
        """Read one row per time step."""
        ids = listed(self.cells.ids(str(self.form.id_column)))
        times = self._numbers(self.form.time_column, parse_times)
        others = self._others()
        features = list(self.form.feature_columns or others)
        if not features:
            raise TableError(f"{self.cells.path} has no column of values. Add one per feature.")
        values = np.stack([self._numbers(name) for name in features], axis=1)
        self.cells.raise_problems()

        code, names = pd.factorize(pd.Series(ids, dtype=object))
        first = np.unique(code, return_index=True)[1]
        order = np.lexsort((times, code))
        self._check_times(order, code, times, ids)
        targets = self._targets(first, code)
        groups = self._constant(self.group, first, code) if self.group else None
        self._check_observed(values, code, list(names), first)
        rows = Rows(code=code, times=times, labels=targets.tolist(), names=features)
        self._refuse_suspects(rows, values)
        cuts = np.flatnonzero(np.diff(code[order])) + 1
        warn_uneven(self.cells.path, np.split(times[order], cuts))
        same = self._same_within([n for n in others if n not in features], first, code)
        return SeriesTable(
            table=self._table(list(map(str, names)), targets, first, same, groups),
            series=np.split(values[order].astype(np.float32), cuts),
            feature_names=features,
        )

    def _check_times(
        self, order: Int64[np.ndarray, "rows"], code: np.ndarray, times: np.ndarray, ids: list[str]
    ) -> None:
        same = (np.diff(code[order]) == 0) & (np.diff(times[order]) == 0)
        texts = self.cells.column(self.form.time_column)
        for place in np.flatnonzero(same):
            earlier, later = sorted(order[place : place + 2].tolist())
            self.cells.note(
                later,
                self.form.time_column,
                f"{ids[later]!r} has the time {texts[later]} already on "
                f"{self.cells.where(earlier)}",
            )

    def _constant(self, column: str, first: np.ndarray, code: np.ndarray) -> list[str]:
        """Return the cell of each series, which must not change within it."""
        texts = self.cells.column(column)
        for row, text in enumerate(texts):
            start = int(first[code[row]])
            if text != texts[start] and not _same_number(text, texts[start]):
                self.cells.note(
                    row,
                    column,
                    f"{shown(text)} is not the {shown(texts[start])} of the same "
                    f"series on {self.cells.where(start)}",
                )
        return [texts[row] for row in first]

    def _same_within(
        self, columns: Sequence[str], first: np.ndarray, code: np.ndarray
    ) -> list[str]:
        """Return the columns that have one value per series and so can be metadata."""
        kept: list[str] = []
        dropped: list[str] = []
        for name in columns:
            texts = np.array(self.cells.column(name), dtype=object)
            (kept if (texts == texts[first][code]).all() else dropped).append(name)
        if dropped:
            logger.warning(
                "%s: %s not used, as the cells differ within a series: %s.",
                self.cells.path, counted(len(dropped), "column"), ", ".join(dropped),
            )  # fmt: skip
        return kept

    # Wide

    def read_wide(self) -> SeriesTable:
        """Read one row per series."""
        n = len(self.cells)
        rows = np.arange(n)
        ids = self._wide_ids()
        places, times = self._wide_columns()
        used = {name for columns in places.values() for name in columns}
        values = np.stack(
            [np.stack([self._numbers(name) for name in columns]) for columns in places.values()]
        ).transpose(2, 1, 0)
        targets = self._targets(rows, rows)
        groups = self.cells.column(self.group) if self.group else None
        self._check_observed(values.reshape(n, -1), rows, ids, rows)
        grid = np.repeat(rows, len(times))
        labels = targets.tolist()
        steps = Rows(code=grid, times=np.tile(times, n), labels=labels, names=list(places))
        self._refuse_suspects(steps, values.reshape(len(grid), -1))
        warn_uneven(self.cells.path, [times])
        extra = [name for name in self._others() if name not in used]
        return SeriesTable(
            table=self._table(ids, targets, rows, extra, groups),
            series=[_without_padding(series.astype(np.float32)) for series in values],
            feature_names=list(places),
            named=self.form.id_column is not None or groups is not None,
        )

    def _wide_ids(self) -> list[str]:
        if not self.form.id_column:
            return numbered(len(self.cells))
        ids = listed(self.cells.ids(self.form.id_column))
        self.cells.problems += repeated_ids(ids)
        return ids

    def _wide_columns(self) -> tuple[dict[str, list[str]], Float64[np.ndarray, "frames"]]:
        """Return the columns of each feature in the order of time, and the times."""
        found = self._columns_by_time()
        chosen = list(found if self.form.feature_columns is None else self.form.feature_columns)
        self._refuse_absent(chosen, found)
        times = sorted({time for name in chosen for time in found[name]})
        self._check_gaps({name: found[name] for name in chosen}, times)
        return {name: [found[name][time] for time in times] for name in chosen}, np.array(times)

    def _columns_by_time(self) -> dict[str, dict[float, str]]:
        """Return the columns whose names follow the pattern, by feature and time."""
        expression = template(self.form.pattern)
        found: dict[str, dict[float, str]] = {}
        for name in self._others():
            match = expression.fullmatch(name)
            if not match:
                continue
            feature = match.groupdict().get("feature", "value")
            time = float(match["time"])
            if time in found.setdefault(feature, {}):
                raise TableError(
                    f"{self.cells.path} has the time {time:g} of {feature!r} twice: columns "
                    f"{found[feature][time]!r} and {name!r}. Rename or remove one."
                )
            found[feature][time] = name
        return found

    def _refuse_absent(self, chosen: Sequence[str], found: Mapping[str, Any]) -> None:
        """Refuse features without any column, and a table without features."""
        missing = [name for name in chosen if name not in found]
        if missing or not chosen:
            raise TableError(
                f"{self.cells.path} has no columns of {' and '.join(map(repr, missing))}"
                f"{'' if missing else 'values'}, named as {self.form.pattern}; found "
                f"{', '.join(map(repr, self.cells.header[:30]))}. Give the pattern of the names, "
                f"or layout='long' for one row per time step."
            )

    def _check_gaps(self, found: Mapping[str, Mapping[float, str]], times: list[float]) -> None:
        """Refuse features that lack a time of the others; as there may be very many, some of it."""
        n_gaps = sum(len(times) - len(columns) for columns in found.values())
        if not n_gaps:
            return
        gaps = (
            f"{name} has no column for the time {time:g}"
            for name, columns in found.items() if len(columns) < len(times)
            for time in times if time not in columns
        )  # fmt: skip
        shown = "\n".join(f"  {gap}" for gap in islice(gaps, 10))
        more = f"\n  ... and {n_gaps - 10:,} more ({n_gaps:,} in all)" if n_gaps > 10 else ""
        raise TableError(
            f"{self.cells.path}: not all features have a column for each time:\n{shown}{more}\n"
            f"Give feature_columns if some of them are no features."
        )

    # Both

    def _refuse_suspects(self, rows: Rows, values: Float64[np.ndarray, "rows features"]) -> None:
        """Refuse what may be no measurement, unless the user named the features."""
        reasons = rows.suspects(dict(zip(rows.names, values.T, strict=True)))
        if self.form.feature_columns is not None or not reasons:
            return
        others = [name for name in rows.names if name not in reasons]
        lines = [f"{name!r} {reason}" for name, reason in reasons.items()]
        if others:
            flag, more = shlex.quote(",".join(others)), "; add those of the above"
        else:
            flag, more = "NAMES", " with those of the above"
        in_shell = "" if any("," in name for name in others) else f"--feature-columns {flag}, or "
        raise TableError(
            f"{self.cells.path} has {counted(len(reasons), 'column')} that may be no measurement:\n"
            f"{listing(lines)}\nName the features: {in_shell}feature_columns={others or '[...]'} "
            f"in Python{more} that are measurements. What is named is taken, the rest is "
            f"kept as metadata."
        )

    def _targets(self, first: np.ndarray, code: np.ndarray) -> np.ndarray:
        if self.target is None:
            return label_array([None] * len(first))
        parse, targets = label_parser(self.form.labels, "sequence"), []
        texts, required = self._constant(self.target, first, code), self.form.require_target is True
        for row, text in zip(first.tolist(), texts, strict=True):
            label, problem = parse(text) if text or required else (None, None)
            if problem:
                self.cells.note(row, self.target, f"{shown(text)} {problem}")
            targets.append(None if problem else label)
        return label_array(targets)

    def _check_observed(
        self, values: np.ndarray, code: np.ndarray, ids: Sequence[str], first: np.ndarray
    ) -> None:
        """Refuse series without any value, and all else that was noted."""
        seen = np.zeros(len(first), bool)
        np.logical_or.at(seen, code, ~np.isnan(values).all(axis=1))
        self.cells.problems += [
            f"{self.cells.where(int(first[i]))}: {ids[i]!r} has no observed value"
            for i in np.flatnonzero(~seen).tolist()
        ]
        self.cells.raise_problems()

    def _table(
        self,
        ids: list[str],
        targets: np.ndarray,
        first: Int64[np.ndarray, "series"],
        extra: Sequence[str],
        groups: Sequence[str] | None,
    ) -> Table:
        """Return ids, labels and the columns `extra` of each series, from its first row."""
        texts = {name: self.cells.column(name) for name in extra}
        columns = {name: typed([cells[row] for row in first]) for name, cells in texts.items()}
        if groups is not None:
            columns["group"] = pd.Series(list(groups), dtype=object)
        return Table(
            path=self.cells.path,
            ids=ids,
            targets=targets,
            metadata=pd.DataFrame(columns),
            lines=[self.cells.lines[row] for row in first],
            word=self.cells.word,
        )


_NAME_FEATURES = "; name the features (--feature-columns), and it is kept as metadata"


def template(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of the names of wide columns.

    Raises
    ------
    ConfigError
        If the pattern has no ``{time}``.

    Examples
    --------
    >>> template("{feature}_{time}").fullmatch("heart_rate_12").groupdict()
    {'feature': 'heart_rate', 'time': '12'}
    >>> template("t{time}").fullmatch("t0.5").groupdict()
    {'time': '0.5'}
    """
    if pattern.count("{time}") != 1 or pattern.count("{feature}") > 1:
        raise ConfigError(
            f"pattern must hold {{time}} once and {{feature}} at most once, as {TEMPLATE!r}; got "
            f"{pattern!r}."
        )
    text = re.escape(pattern).replace(re.escape("{feature}"), r"(?P<feature>.+)")
    return re.compile(text.replace(re.escape("{time}"), r"(?P<time>\d+(\.\d+)?)"), re.ASCII)


def _same_number(one: str, other: str) -> bool:
    left, right = parse_number(one)[0], parse_number(other)[0]
    return left == right


def _without_padding(series: Float32[np.ndarray, "frames features"]) -> np.ndarray:
    """Return a row of a wide table up to its last observed time step."""
    last = int(np.flatnonzero(~np.isnan(series).all(axis=1)).max())
    return series[: last + 1]
