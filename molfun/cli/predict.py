"""Predict and evaluate with a checkpoint, which holds all settings that are needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from molfun._io import write_json
from molfun._paths import as_path
from molfun.cli.command_settings import EvaluateSettings, PredictSettings
from molfun.cli.console import Progress, metric_line, say, set_up_logging
from molfun.cli.data import dealt_loader, kind_for, say_notes
from molfun.cli.energies import say_units
from molfun.cli.models import open_ensemble, open_model, trained_as
from molfun.cli.nearness import (
    KINDS,
    chains_of,
    compare,
    compare_with_record,
    distances,
    training_of,
)
from molfun.cli.outputs import check_output
from molfun.cli.settings import paths_in
from molfun.cli.several import processes
from molfun.cli.tables import write_predictions
from molfun.cli.training_rows import reopened, rows_of, run_of
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind
from molfun.data.kinds.structures import STRUCTURE
from molfun.errors import ConfigError, MolfunError, RunError
from molfun.models.ensemble import is_ensemble
from molfun.models.evaluation import Scores
from molfun.models.folding import check_settings, maker_of_all
from molfun.models.prediction import Prediction
from molfun.models.structure import MolfunStructureModel
from molfun.parallel.ranks import Ranks
from molfun.runs import noted
from molfun.structures.files import check_names
from molfun.text import counted, first_line, three_digits

_MEMBER = re.compile(r"member_\d+/")
LABELS = ("target_column", "target_key")
"""Settings that name one label."""


def predict(given: Mapping[str, Any]) -> None:
    """Predict for new samples, and write a table."""
    wanted, about = PredictSettings.take(given)
    kind, dataset = _samples(wanted, about, labels=False)
    if wanted.coverage is not None and not is_ensemble(wanted.checkpoint):
        raise ConfigError(
            f"--coverage needs the errors of a model on rows that it never saw, and "
            f"{wanted.checkpoint} is a single model. Run molfun cv with the settings of its run, "
            f"and predict with the folder ensemble/ of that."
        )
    _check_structures(wanted, dataset)
    with processes(wanted) as ranks:
        near: dict[str, list[Any]] = {}
        if ranks.is_first:
            near = _compared(wanted, kind, dataset, about) or _recorded(wanted, kind, dataset)
        model = _opened(wanted)
        ranks.of_first(lambda: _make_room(wanted, model))
        bounds = {} if wanted.coverage is None else {"coverage": wanted.coverage}
        folder = {} if wanted.structures is None else {"structures": wanted.structures}
        batches = Progress(_dealt(wanted, model, dataset, ranks), "predicting")
        result = model.predict(batches, **bounds, **folder)
    if ranks.is_first:
        near |= distances(result, getattr(model, "training_record", None))
        _write(wanted, kind, dataset, model, result, near)


def _write(
    wanted: PredictSettings,
    kind: DataKind,
    dataset: SampleDataset,
    model: Any,
    result: Prediction,
    near: dict[str, list[Any]],
) -> None:
    """Write the table of predictions, with the files beside it, and say so."""
    path = as_path(wanted.output)
    write_predictions(path, result, dataset, about=near)
    beside = None
    if wanted.structures is None:
        beside = kind.write_beside(path, result, dataset, partial(maker_of_all, _members(model)))
    say(f"{counted(len(dataset), 'prediction')} written to {wanted.output}")
    if wanted.structures is not None:
        say(f"{counted(len(dataset), 'predicted structure')} in {wanted.structures}")
    if beside is not None:
        say(f"{kind.beside} written to {beside}")


def _members(model: Any) -> list[MolfunStructureModel]:
    """Return the models of an ensemble, or the only one."""
    return list(getattr(model, "models", [model]))


def _dealt(
    wanted: PredictSettings | EvaluateSettings, model: Any, dataset: SampleDataset, ranks: Ranks
) -> Any:
    """Return a loader of the batches of this process."""
    power = _members(model)[0].backbone.length_power
    return dealt_loader(dataset, wanted.batch_size, power=power, ranks=ranks)


def _check_structures(wanted: PredictSettings, dataset: SampleDataset) -> None:
    """Refuse a folder with other files, such as the user's own structures, and names that clash."""
    if wanted.structures is None:
        return
    if is_ensemble(wanted.checkpoint):
        raise ConfigError(
            f"--structures is for a single model, and {wanted.checkpoint} is an ensemble, whose "
            f"models give a structure each: molfun fold {wanted.checkpoint} ..."
        )
    check_names(dataset.ids)
    folder = as_path(wanted.structures)
    if folder.is_dir() and any(folder.iterdir()):
        own = noted.is_noted(folder) and wanted.overwrite
        if not own:
            raise RunError(
                f"{folder} holds other files. Choose a new folder for --structures (a former one "
                f"of this command is replaced with --overwrite)."
            )


def _make_room(wanted: PredictSettings, model: Any) -> None:
    """Remove the structures of a former run, once it is sure that the model predicts any."""
    if wanted.structures is None:
        return
    check_settings([model], recycles=0, tolerance=None)
    if wanted.overwrite and noted.is_noted(as_path(wanted.structures)):
        noted.remove(as_path(wanted.structures))


def evaluate(given: Mapping[str, Any]) -> None:
    """Compare predictions with labels; print metrics and verdict, and write JSON if asked to."""
    wanted, about = EvaluateSettings.take(given)
    kind, dataset = _samples(wanted, about, labels=True)
    training, why_not = _training(wanted, kind, dataset, about)
    _recorded(wanted, kind, dataset)
    with processes(wanted) as ranks:
        model = _opened(wanted)
        batches = Progress(_dealt(wanted, model, dataset, ranks), "evaluating")
        scores = model.evaluate(
            batches, bootstrap=wanted.bootstrap, baselines=False if training is None else training
        )
    if not ranks.is_first:
        return
    distances(scores, getattr(model, "training_record", None))
    say(f"{counted(len(dataset), 'sample')}: {metric_line(_own(scores))}")
    _say_details(scores)
    if scores.verdict:
        say(f"Verdict: {scores.verdict}")
    elif wanted.baselines:
        say(f"Not compared with baselines: {why_not}")
    if wanted.output is not None:
        verdict = {"verdict": scores.verdict} if scores.verdict else {}
        write_json(as_path(wanted.output), {**scores, **verdict})


def _own(scores: Scores) -> dict[str, float]:
    """Return the metrics of the model: no bounds, and none of baselines or single members."""
    return {
        name: value
        for name, value in scores.items()
        if not (name.endswith(("_low", "_high")) or "baseline/" in name or _MEMBER.match(name))
    }


def _say_details(scores: Scores) -> None:
    """Print the interval of each metric, and a line per member of an ensemble."""
    for name in _own(scores):
        if f"{name}_low" in scores:
            low, high = (three_digits(scores[f"{name}_{end}"]) for end in ("low", "high"))
            say(f"  {name}: {low} to {high} (95 %)")
    members: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        if _MEMBER.match(name):
            member, _, metric = name.partition("/")
            members.setdefault(member, {})[metric] = value
    for member, own in members.items():
        say(f"  {member}: {metric_line(own)}")


def _training(
    wanted: EvaluateSettings, kind: DataKind, dataset: SampleDataset, about: Mapping[str, Any]
) -> tuple[SampleDataset | None, str]:
    """Return the training set that baselines learn from, or the reason why there is none.

    Samples are compared with it if a flag names it.
    """
    if not wanted.baselines:
        _compared(wanted, kind, dataset, about)
        return None, ""
    source: str | Path | None = wanted.training_data or run_of(wanted.checkpoint)
    if source is None:
        return None, (
            f"{wanted.checkpoint} is not in the folder of its run; --training-data names its "
            f"training rows."
        )
    _, trained = trained_as(wanted.checkpoint)
    try:
        rows = rows_of(source, kind, trained, about, labels=True)
    except MolfunError as error:
        # sequences without labels can still be compared
        _compared(wanted, kind, dataset, about)
        return None, first_line(error)
    if wanted.training_data is not None and kind.name in KINDS:
        compare(dataset, chains_of(rows))
    return rows.train, ""


def _samples(
    wanted: PredictSettings | EvaluateSettings, about: Mapping[str, Any], *, labels: bool
) -> tuple[DataKind, SampleDataset]:
    """Open samples for the model of a checkpoint, before the model itself.

    Parameters
    ----------
    wanted
        Settings of the command.
    about
        Settings of the data kind that differ from those of the training set.
    labels
        Whether every sample must have a label.
    """
    set_up_logging(None, debug=wanted.debug)
    # in this order: cheap checks of paths and data come before a model of gigabytes is read
    backbone, trained = trained_as(wanted.checkpoint)
    given = {"data": _data_of(wanted, trained, about), **about}
    kind = kind_for(backbone, trained, given)
    if wanted.output is not None:
        paths = {"data", *paths_in(kind.settings)} & given.keys()
        inputs = {f"--{name}": given[name] for name in paths}
        inputs |= {"--weights": wanted.weights, "CHECKPOINT": wanted.checkpoint}
        inputs["--training-data"] = wanted.training_data
        beside = [] if labels else kind.files_beside(as_path(wanted.output))
        check_output(wanted.output, inputs, overwrite=wanted.overwrite, beside=beside)
    dataset = _reopened(kind, trained, given, labels=labels)
    say_notes(kind, dataset, "--debug lists them")
    return kind, dataset


def _data_of(
    wanted: PredictSettings | EvaluateSettings, trained: Mapping[str, Any], about: Mapping[str, Any]
) -> str:
    """Return what holds the samples: a table, or the folder of a model whose labels are in it."""
    learned = [trained, *(trained.get("heads") or {}).values()]
    from_folder = any(one.get("labels") == STRUCTURE for one in learned)
    found = wanted.data or (about.get("pdbs") if from_folder else None)
    if found is None:
        raise ConfigError(
            "Give the samples: --data TABLE"
            + (", or --pdbs FOLDER of structures." if from_folder else ".")
        )
    return str(found)


def _compared(
    wanted: PredictSettings | EvaluateSettings,
    kind: DataKind,
    dataset: SampleDataset,
    about: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """Compare samples with the training set that a flag names; nothing without it."""
    if wanted.training_data is None:
        return {}
    _, trained = trained_as(wanted.checkpoint)
    return compare(dataset, training_of(wanted.training_data, kind, trained, about))


def _recorded(
    wanted: PredictSettings | EvaluateSettings, kind: DataKind, dataset: SampleDataset
) -> dict[str, list[Any]]:
    """Compare samples with the record in the checkpoint, unless a flag names the training set."""
    if wanted.training_data is not None:
        return {}
    return compare_with_record(wanted.checkpoint, kind, dataset)


def _opened(wanted: PredictSettings | EvaluateSettings) -> Any:
    """Open the ensemble or the model of a folder."""
    found = open_ensemble(
        wanted.checkpoint, weights=wanted.weights, device=wanted.device, kernels=wanted.kernels
    )
    if found is None:
        return _model(wanted)
    if wanted.target is not None:
        raise ConfigError("--target chooses an energy of a single model: leave it out.")
    say_units(found.first)
    say(f"Ensemble of {len(found)} models")
    return found


def _model(wanted: PredictSettings | EvaluateSettings) -> MolfunStructureModel:
    """Open the model of a checkpoint."""
    model = open_model(
        wanted.checkpoint,
        weights=wanted.weights,
        trust=wanted.trust,
        device=wanted.device,
        kernels=wanted.kernels,
    )
    if wanted.target is not None:
        model.use_target(wanted.target)
    say_units(model)
    return model


def _reopened(
    kind: DataKind, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
) -> SampleDataset:
    """Open samples prepared as in training; labels of several heads have the columns of these."""
    of_heads = trained.get("heads")
    columns = [f"--{name.replace('_', '-')}" for name in LABELS if name in given]
    if labels and of_heads and columns:
        raise ConfigError(
            f"{', '.join(columns)}: the model has the heads {', '.join(of_heads)}, and each is "
            f"compared with the column of its training set. Leave it out."
        )
    return reopened(kind, trained, given, labels=labels)
