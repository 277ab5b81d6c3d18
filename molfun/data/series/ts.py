"""The ``.ts`` format of the time series archives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._shapes import Float64
from molfun.data.cells import read_text
from molfun.data.labels import label_array, parse_number
from molfun.data.series.arrays import (
    MAX_VALUES,
    SeriesTable,
    checked_names,
    numbered,
    parse_times,
    parse_values,
    warn_uneven,
)
from molfun.data.tables import Table
from molfun.errors import DataError
from molfun.text import counted, few, listing, shown, unknown_name

_TAGS = {
    "problemname": "text", "timestamps": "bool", "missing": "bool", "univariate": "bool",
    "dimension": "count", "dimensions": "count", "equallength": "bool", "serieslength": "count",
    "classlabel": "classes", "targetlabel": "bool", "data": "text",
}  # fmt: skip
_MARKS = re.compile(r"[():]")
_STAMPED = re.compile(r"\(([^()]*),([^(),]*)\)")


def read_ts(path: Path) -> SeriesTable:
    """Read a ``.ts`` file (also packed with gzip); see `TimeSeriesDataset.from_ts`.

    Raises
    ------
    DataError
        If the file is missing, its header is wrong, or any line is bad; all of them are listed.
    """
    if not path.is_file():
        raise DataError(f"No such file: {path}.")
    header: dict[str, Any] = {}
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if "data" in header:
            lines.append((number, text))
        elif text.startswith("@"):
            _read_tag(header, text, f"{path}, line {number}")
        else:
            raise DataError(
                f"{path}, line {number}: expected a line that begins with @ or # before @data, "
                f"found {shown(text)}. Is it a .ts file?"
            )
    if not lines:
        what = "no series after @data" if "data" in header else "no @data"
        raise DataError(f"{path} has {what}. Write one line per series.")
    return _TsReader(path, header).read(lines)


def _read_tag(header: dict[str, Any], text: str, where: str) -> None:
    name, *words = text[1:].split() or [""]
    tag = name.lower()
    if tag not in _TAGS:
        raise DataError(f"{where}: {unknown_name('tag', '@' + name, ['@' + t for t in _TAGS])}")
    key = "dimension" if tag == "dimensions" else tag
    header[key] = _tag_value(_TAGS[tag], words, f"after @{name}", where)


def _tag_value(kind: str, words: list[str], place: str, where: str) -> Any:
    """Return the value of a tag: a text, a whole number, a truth value, or the names of classes."""
    text = " ".join(words)
    word = words[0].lower() if words else ""
    if kind == "count":
        if not (word.isascii() and word.isdigit() and int(word) > 0):
            raise DataError(f"{where}: expected a number {place}, found {text!r}.")
        return int(word)
    if kind not in ("bool", "classes"):
        return text
    if word not in ("true", "false"):
        raise DataError(f"{where}: expected true or false {place}, found {text!r}.")
    if kind == "bool":
        return word == "true"
    return words[1:] if word == "true" else None


def _channels(text: str) -> list[str]:
    """Return the parts of a line between colons, but for colons in brackets of stamped values."""
    if ")" not in text:
        return text.split(":")
    parts, end, inside = [], len(text), False
    # from the end, a colon is inside where the bracket met last closes
    for mark in reversed(list(_MARKS.finditer(text))):
        if mark.group() != ":":
            inside = mark.group() == ")"
        elif not inside:
            parts.append(text[mark.end() : end])
            end = mark.start()
    return [text[:end], *reversed(parts)]


class _TsReader:
    """Lines of a ``.ts`` file, with every bad one noted."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, header
        self.classes: list[str] | None = header.get("classlabel")
        self._known = frozenset(self.classes or ())
        self.is_regression = bool(header.get("targetlabel"))
        if self.classes is not None and self.is_regression:
            raise DataError(f"{path} has both @classLabel true and @targetLabel true; keep one.")
        self.n_channels: int | None = 1 if header.get("univariate") else header.get("dimension")
        self.n_frames: int | None = header.get("serieslength") if self._equal else None
        self.problems: list[str] = []
        self.times: list[np.ndarray] = []

    @property
    def _equal(self) -> bool:
        return bool(self.header.get("equallength"))

    def read(self, lines: Sequence[tuple[int, str]]) -> SeriesTable:
        """Read all series, or raise one error with all that is wrong."""
        series, targets = [], []
        for number, text in lines:
            self.where = f"line {number}"
            parts = _channels(text)
            targets.append(self._label(parts))
            series.append(self._series(parts))
        if self.problems:
            raise DataError(
                f"{self.path} has {counted(len(self.problems), 'fault')}:\n{listing(self.problems)}"
            )
        warn_uneven(self.path, self.times)
        table = Table(
            path=self.path,
            ids=numbered(len(series)),
            targets=label_array(targets),
            lines=[number for number, _ in lines],
        )
        names = checked_names(None, series[0].shape[1], self.path)
        return SeriesTable(table=table, series=series, feature_names=names, named=False)

    def _note(self, problem: str) -> None:
        self.problems.append(f"{self.where}: {problem}")

    def _label(self, parts: list[str]) -> Any:
        """Take the label off the channels."""
        if self.classes is None and not self.is_regression:
            return None
        text = parts.pop().strip()
        if text == "?":
            return None
        if self.is_regression:
            return self._number(text)
        if not text or (self.classes and text not in self._known):
            known = few(self.classes or [], limit=20) or "any name"
            self._note(f"the label {shown(text)} is not in the header ({known})")
        return text

    def _number(self, text: str) -> float:
        value, problem = parse_number(text)
        if problem:
            self._note(f"the label {shown(text)} {problem}")
        return value

    def _series(self, parts: Sequence[str]) -> np.ndarray:
        """Return the (frames, features) of one line; empty where it is bad."""
        before = len(self.problems)
        nothing = np.empty((0, 0), np.float32)
        if not parts:
            self._note("a label without values; write value,value,...:label")
            return nothing
        if self.n_channels is None:
            self.n_channels = len(parts)
        if len(parts) != self.n_channels:
            self._note(f"{counted(len(parts), 'dimension')}, expected {self.n_channels}")
            return nothing
        stamped = bool(self.header.get("timestamps"))
        read = self._stamped if stamped else self._plain
        channels = [read(part, place) for place, part in enumerate(parts, start=1)]
        lengths = sorted({len(channel) for channel in channels})
        if len(self.problems) > before:
            return nothing
        if stamped:
            values = self._merged(channels)
        elif len(lengths) > 1:
            self._note(f"dimensions of {' and '.join(map(str, lengths))} values; pad them with ?")
            return nothing
        else:
            values = np.stack(channels, axis=1)
        return self._checked(values)

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if np.isnan(values).all():
            self._note("no observed value")
        if self._equal and len(values) != (self.n_frames or len(values)):
            self._note(
                f"{counted(len(values), 'value')} per dimension, expected {self.n_frames} "
                f"(@equalLength true)"
            )
        self.n_frames = self.n_frames or len(values)
        return values.astype(np.float32)

    def _plain(self, part: str, place: int) -> Float64[np.ndarray, "frames"]:
        texts = [text.strip() for text in part.replace("?", "nan").split(",")]
        return self._values(texts, place, parse_values)

    def _stamped(self, part: str, place: int) -> Float64[np.ndarray, "frames 2"]:
        """Return the times and values of one channel."""
        pairs = _STAMPED.findall(part)
        if not pairs or _STAMPED.sub("", part).strip(", "):
            self._note(f"dimension {place}: expected (time,value),(time,value)...")
            return np.empty((0, 2))
        times = self._values([time.strip() for time, _ in pairs], place, parse_times)
        values = self._values([value.strip() for _, value in pairs], place, parse_values)
        if len(np.unique(times)) < len(times):
            self._note(f"dimension {place}: a time comes more than once")
        return np.stack([times, values], axis=1)

    def _values(
        self, texts: Sequence[str], place: int, parse: Callable[..., Any]
    ) -> Float64[np.ndarray, "frames"]:
        values, bad = parse(texts)
        for index, problem in bad[:1]:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            self._note(f"dimension {place}: {shown(texts[index])} {problem}{more}")
        return np.asarray(values)

    def _merged(self, channels: Sequence[np.ndarray]) -> Float64[np.ndarray, "frames features"]:
        """Put channels on all their times together, NaN where one has no value."""
        times = np.unique(np.concatenate([channel[:, 0] for channel in channels]))
        MAX_VALUES.check(len(times) * len(channels), f"{self.path}, {self.where}")
        values = np.full((len(times), len(channels)), np.nan)
        for place, channel in enumerate(channels):
            values[np.searchsorted(times, channel[:, 0]), place] = channel[:, 1]
        self.times.append(times)
        return values
