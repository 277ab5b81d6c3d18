"""Observables of molecular dynamics: numbers over time, from the frames of a trajectory.

Needs MDAnalysis (``pip install 'molfun[md]'``), which reads XTC, TRR, DCD, PDB and many others.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from molfun._lazy import require
from molfun._paths import as_path
from molfun._shapes import Bool, Float32, Float64
from molfun.data.cells import Cells, read_cells
from molfun.data.columns import typed
from molfun.data.labels import LabelForm, label_parser
from molfun.data.series.arrays import MAX_VALUES
from molfun.data.series.observables import INSTALL, MAKERS, Part, System, selection_distances
from molfun.errors import ConfigError, DataError, TableError
from molfun.strict import refuse_unknown, wrong_counts
from molfun.text import counted, first_line, listing, shown, unknown_name

logger = logging.getLogger(__name__)

OBSERVABLES = tuple(MAKERS)
"""Names of all observables except the distances of selections."""
USUAL = ("rg", "end_to_end", "phi", "psi", "native_contacts", "rmsd")
UNEQUAL_STEPS = 1e-3


class Observables(NamedTuple):
    """Observables of each frame, as `observables` gives them.

    Parameters
    ----------
    times
        (frames,) in ps.
    values
        (frames, features), 0 where the mask is False.
    mask
        (frames, features), False for what a system does not have, as phi of its first residue.
    names
        Names of the features.
    """

    times: Float64[np.ndarray, "frames"]
    values: Float32[np.ndarray, "frames features"]
    mask: Bool[np.ndarray, "frames features"]
    names: list[str]

    @property
    def time_step(self) -> float:
        """Time between the first two frames in ps, NaN for a single frame."""
        return float(self.times[1] - self.times[0]) if len(self.times) > 1 else math.nan


class TrajectoryRow(NamedTuple):
    """One trajectory of `TimeSeriesDataset.from_trajectories`."""

    id: str
    topology: Any
    trajectory: Any = None
    label: Any = None
    group: Any = None

    @property
    def group_or_id(self) -> Any:
        """The group; a trajectory without one is a group by itself."""
        return self.id if self.group is None else self.group


def observables(
    topology: Any,
    trajectory: str | Path | None = None,
    *,
    select: Mapping[str, str] | None = None,
    protein: str = "protein",
    observe: Sequence[str] = USUAL,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
) -> Observables:
    r"""Compute observables of each frame of a trajectory, one frame in memory at a time.

    ======================= ====================================================================
    ``rg``                  radius of gyration in angstrom, weighted by mass
    ``end_to_end``          first to last CA of each chain in angstrom
    ``distance_<a>_<b>``    between the centres of two selections in angstrom, of the nearest
                            periodic images where there is a box
    ``phi_<n>_sin`` ...     sine and cosine of phi, psi and, on request, chi1 of residue n
    ``native_contacts``     fraction of native contacts, from 0 to 1
    ``rmsd``                of main-chain atoms to the first frame, superposed, in angstrom
    ======================= ====================================================================

    With :math:`r^0` in the first frame read, the native contacts are the :math:`N` pairs of heavy
    atoms with :math:`r^0 < 4.5` angstrom, more than three residues apart, and their fraction is

    .. math:: Q = \frac{1}{N} \sum_{ij} \frac{1}{1 + \exp(5 (r_{ij} - 1.8 r^0_{ij}))}

    Molecules have to be whole: those that are cut by the edge of a periodic box are not put
    together here. Do that first, or give a Universe with such a transformation.

    Parameters
    ----------
    topology
        File of the atoms (PDB, GRO, PSF, TPR ...), or an ``MDAnalysis.Universe``.
    trajectory
        File of the frames; by default those of the topology.
    select
        Names and selections (as MDAnalysis writes them), for the distances between all pairs.
    protein
        Selection that everything else is computed of.
    observe
        Which of `OBSERVABLES` to compute, in this order; () for distances alone.
    start, stop, stride
        Frames to read, as in a slice: from 0, `stop` excluded.

    Returns
    -------
    Observables
        Times, values, mask and names.

    Raises
    ------
    MissingDependencyError
        If MDAnalysis is not installed.
    ConfigError
        If an argument is not allowed, or a selection is none.
    DataError
        If a file is missing or cannot be read, a selection is empty, atoms that are needed are
        not there, or coordinates are not finite.

    References
    ----------
    Best, Hummer, Eaton, PNAS 110, 17874 (2013), for the native contacts.
    """
    _check_arguments(select, observe, start, stop, stride)
    with _reading(topology, trajectory):
        universe = _open(topology, trajectory)
        frames = universe.trajectory[start:stop:stride]
        if len(frames) == 0:
            raise DataError(
                f"{_shown(topology, trajectory)} has {len(universe.trajectory)} frames, none of "
                f"them in start={start}, stop={stop}, stride={stride}."
            )
        frames[0]
        system = System(universe, protein, _shown(topology, trajectory))
        parts = [part for name in observe for part in MAKERS[name](system)]
        parts += selection_distances(system, select or {})
        names = [name for part in parts for name in part.names]
        MAX_VALUES.check(len(frames) * len(names), system.shown)
        known = np.concatenate([part.known for part in parts])
        times, values = _follow(frames, parts, known, system.shown)
    mask = np.broadcast_to(known, values.shape).copy()
    return Observables(times, np.where(mask, values, np.float32(0)), mask, names)


_FILES = ("topology", "trajectory")
_OPTIONS = [name for name in inspect.signature(observables).parameters if name not in _FILES]


def _follow(
    frames: Any, parts: Sequence[Part], known: Bool[np.ndarray, "features"], shown: str
) -> tuple[Float64[np.ndarray, "frames"], Float32[np.ndarray, "frames features"]]:
    """Compute the features of each frame."""
    names = [name for part in parts for name in part.names]
    values = np.full((len(frames), len(names)), np.nan, np.float32)
    times = np.empty(len(frames))
    n_read = 0
    for row, step in enumerate(frames):
        times[row] = step.time
        parts_of_row = [part.of(step.positions, step.dimensions) for part in parts]
        values[row] = np.concatenate(parts_of_row)
        _check_finite(values[row], known, names, f"{shown}, frame {step.frame}")
        n_read = row + 1
    if n_read < len(frames):
        # readers end quietly where a file was cut within a frame
        raise DataError(
            f"{shown} ends after {n_read} of {len(frames)} frames; its last frame is not whole. "
            f"Write it again, or stop before it."
        )
    return times, values


def read_all(
    source: str | Path | Iterable[Sequence[Any]],
    *,
    labels: LabelForm = "number",
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], Cells | None]:
    """Compute observables of many trajectories; see `TimeSeriesDataset.from_trajectories`.

    Returns
    -------
    tuple
        Arguments of `TimeSeriesDataset.from_arrays`, and the table if they were read from one.

    Raises
    ------
    DataError
        If files are missing (all of them are listed) or cannot be read.
    ConfigError
        If an option is not allowed.
    """
    refuse_unknown("option", options, _OPTIONS)
    path, cells = Path("list"), None
    extra: dict[str, Any] = {}
    if isinstance(source, str | Path) or not isinstance(source, Iterable):
        path = as_path(source)
        cells, rows, extra = _read_rows(path, labels)
    else:
        rows = list(starmap(_row, enumerate(source, start=1)))
    _check_files(path, rows)
    found = [observables(row.topology, row.trajectory, **options) for row in rows]
    names = _names_of_all(found)
    _warn_differences(rows, found, names)
    given = {
        "timeseries": [_aligned(one, names) for one in found],
        "labels": [row.label for row in rows],
        "ids": [row.id for row in rows],
        "groups": [row.group_or_id for row in rows],
        "feature_names": names,
        "metadata": {**extra, "frame_ps": [one.time_step for one in found]},
        "path": path,
    }
    return given, cells


# Files


@contextmanager
def _reading(topology: Any, trajectory: Any) -> Iterator[None]:
    """Make errors of MDAnalysis ours, and log its warnings."""
    md = require("MDAnalysis", INSTALL)
    shown = _shown(topology, trajectory)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except (DataError, ConfigError):
        raise
    except md.SelectionError as error:
        raise ConfigError(f"{shown}: no selection ({first_line(error)}).") from error
    except Exception as error:
        # readers raise OSError, ValueError, EOFError, RuntimeError, IndexError, KeyError ...
        raise DataError(
            f"{shown} cannot be read ({first_line(error)}). Check that the files are whole, and "
            f"that topology and trajectory have the same atoms."
        ) from error
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        logger.info("%s: %s", shown, text)


def _open(topology: Any, trajectory: Any) -> Any:
    if hasattr(topology, "trajectory"):
        return topology
    paths = [as_path(path) for path in (topology, trajectory) if path is not None]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"No such file: {' and '.join(missing)}.")
    return require("MDAnalysis", INSTALL).Universe(*map(str, paths))


def _shown(topology: Any, trajectory: Any) -> str:
    return str(topology if trajectory is None else trajectory)


def _read_rows(
    path: Path, labels: LabelForm
) -> tuple[Cells, list[TrajectoryRow], dict[str, pd.Series]]:
    """Return the rows of a table, and its other columns."""
    cells = read_cells(path, "id")
    cells.require(dict.fromkeys(["id", "topology"], ""))
    names = ("id", "topology", "trajectory", "target", "group")
    texts = {"id": cells.ids("id"), **{name: cells.column_or_blank(name) for name in names[1:]}}
    parse, rows = label_parser(labels, "sequence"), []
    for row, (name, topology, trajectory, text, group) in enumerate(
        zip(*texts.values(), strict=True)
    ):
        label, problem = parse(text) if text else (None, None)
        if problem:
            cells.note(row, "target", f"{shown(text)} {problem}")
        if not topology:
            cells.note(row, "topology", "is blank; name a file")
        frames = str(path.parent / trajectory) if trajectory else None
        rows.append(TrajectoryRow(name, str(path.parent / topology), frames, label, group or None))
    cells.raise_problems()
    others = {n: typed(cells.column(n)) for n in cells.header if n not in texts}
    return cells, rows, others


def _row(place: int, item: Sequence[Any]) -> TrajectoryRow:
    most = len(TrajectoryRow._fields)
    if isinstance(item, str) or not isinstance(item, Sized) or not 2 <= len(item) <= most:
        raise ConfigError(
            f"Item {place} must be ({', '.join(TrajectoryRow._fields)}), the last three optional; "
            f"got {item!r}."
        )
    return TrajectoryRow(*item)


def _check_files(path: Path, rows: Sequence[TrajectoryRow]) -> None:
    missing = [
        f"{row.id}: {file}"
        for row in rows
        for file in (row.topology, row.trajectory)
        if isinstance(file, str | Path)
        # no errors on names that cannot be
        and not os.path.isfile(os.path.expanduser(file))  # noqa: PTH111, PTH113
    ]
    if missing:
        raise TableError(
            f"{path}: {counted(len(missing), 'file')} not found:\n{listing(missing)}\nPaths in a "
            f"table are relative to its folder."
        )


def _warn_differences(
    rows: Sequence[TrajectoryRow], found: Sequence[Observables], names: Sequence[str]
) -> None:
    partial = [name for name in names if any(name not in one.names for one in found)]
    if partial:
        logger.warning(
            "%d of %d features are not in all trajectories and masked where they are not: %s%s",
            len(partial), len(names), ", ".join(partial[:5]), ", ..." if partial[5:] else "",
        )  # fmt: skip
    _warn_time_steps(rows, found)


def _warn_time_steps(rows: Sequence[TrajectoryRow], found: Sequence[Observables]) -> None:
    steps = {row.id: one.time_step for row, one in zip(rows, found, strict=True)}
    known = {name: step for name, step in steps.items() if math.isfinite(step)}
    if known and max(known.values()) > (1 + UNEQUAL_STEPS) * min(known.values()):
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        logger.warning(
            "Frames are %g ps apart in %s and %g ps in %s; models take them as equally spaced. "
            "Write all of them at the same interval, or read each with a stride of its own.",
            known[low], low, known[high], high,
        )  # fmt: skip


def _names_of_all(found: Iterable[Observables]) -> list[str]:
    """Return the names of the features of any trajectory, each once."""
    return list(dict.fromkeys(name for one in found for name in one.names))


def _aligned(one: Observables, names: Sequence[str]) -> Float32[np.ndarray, "frames features"]:
    """Return the values in the order of `names`, NaN where there are none."""
    values = np.full((len(one.values), len(names)), np.nan, np.float32)
    places = [names.index(name) for name in one.names]
    values[:, places] = np.where(one.mask, one.values, np.nan)
    return values


# Checks


def _check_arguments(
    select: Mapping[str, str] | None, observe: Sequence[str], start: int, stop: Any, stride: int
) -> None:
    problems = [unknown_name("observable", n, OBSERVABLES) for n in observe if n not in OBSERVABLES]
    if isinstance(observe, str):
        problems = [f"observe must be a list of names, got {observe!r}."]
    if select is not None and len(select) < 2:
        problems.append(f"select must name at least two selections, got {dict(select)!r}.")
    if not observe and not select:
        problems.append("There is nothing to compute: observe and select are empty.")
    problems += _wrong_range(start, stop, stride)
    if problems:
        raise ConfigError(" ".join(problems))


def _wrong_range(start: Any, stop: Any, stride: Any) -> list[str]:
    problems = [*wrong_counts(0, start=start), *wrong_counts(stride=stride)]
    if stop is not None and (not isinstance(stop, int) or stop < 1):
        problems.append(f"stop must be a whole number of at least 1, or None, got {stop!r}.")
    return problems


def _check_finite(
    row: Float32[np.ndarray, "features"],
    known: Bool[np.ndarray, "features"],
    names: Sequence[str],
    where: str,
) -> None:
    bad = np.flatnonzero(known & ~np.isfinite(row))
    if len(bad):
        raise DataError(
            f"{where}: {names[bad[0]]} is {row[bad[0]]}. Its coordinates are damaged; "
            f"leave it out with start and stop, or write it again."
        )
