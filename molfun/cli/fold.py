"""Fold sequences or samples of a table, and write the files of each; a stopped run goes on."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from molfun._io import write_json
from molfun._paths import as_path
from molfun.cli.command_settings import FoldSettings
from molfun.cli.console import Progress, say, set_up_logging
from molfun.cli.models import open_ensemble, open_model
from molfun.cli.outputs import refuse_inputs
from molfun.cli.several import processes
from molfun.data.fasta import read_fasta
from molfun.data.folders import FolderIndex, with_alignments
from molfun.data.kinds.sequences import is_fasta
from molfun.errors import ConfigError, DataError, RunError
from molfun.models import folding
from molfun.models.ensemble import Ensemble
from molfun.models.fold_memory import too_large
from molfun.models.precision import inference_precision
from molfun.models.structure import MolfunStructureModel
from molfun.parallel.dealing import deal
from molfun.parallel.ranks import Ranks
from molfun.runs.folder import REPORT
from molfun.runs.writers import WRITERS, held_by_all
from molfun.sample import CHAIN_SEPARATOR, Sample
from molfun.strict import check_choice
from molfun.structures import files
from molfun.text import counted, listing

SHOWN = 10
"""Structures that the terminal lists."""


def fold(given: Mapping[str, Any]) -> None:
    """Fold with the settings of the command line."""
    wanted, _ = FoldSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    samples = folding.samples_to_fold(_samples(wanted))
    _refuse(wanted, samples)
    with processes(wanted) as ranks:
        models = _models(wanted)
        # before the folder is claimed or a former run is removed
        folding.check_settings(models, wanted.recycles, wanted.recycle_tolerance)
        models[0].check(samples)
        run(models, samples, wanted, ranks)


def run(
    models: Sequence[MolfunStructureModel],
    samples: Sequence[Sample],
    wanted: FoldSettings,
    ranks: Ranks,
) -> None:
    """Fold and write; a structure that is there already is not computed again.

    Parameters
    ----------
    models
        One model, or those of an ensemble.
    samples
        Samples that the model has checked.
    wanted
        Settings of the command.
    ranks
        Processes of the command; each writes the structures that it folds.

    Raises
    ------
    RunError
        If the folder holds structures of another model or other settings, or other files; after
        all others are folded, if a sample takes more memory than is free or has coordinates that
        are not finite.
    """
    folder = as_path(wanted.output)
    with held_by_all(folder, ranks):
        identity = {
            "model": _fingerprint(models),
            "settings": models[0].backbone.featurize_key(),
            "recycles": wanted.recycles,
            "recycle_tolerance": wanted.recycle_tolerance,
            "seed": wanted.seed,
            "unify_chains": wanted.unify_chains,
        }
        chosen = inference_precision(models[0], wanted.precision)
        if chosen is not None:  # folders of before have none
            identity["precision"] = chosen
        ranks.of_first(lambda: _claim(folder, identity, overwrite=wanted.overwrite))
        places = dict(_places(folder, samples, wanted.shard_size))
        failed = _fold_missing(models, samples, places, wanted, ranks)
        if not ranks.is_first:
            return
        rows = [files.read_row(places[s.id], s.id) for s in samples if s.id not in failed]
        absent = [_absent(sample, failed[sample.id]) for sample in samples if sample.id in failed]
        files.write_summary([*rows, *absent], folder / files.SUMMARY)
    if rows:
        _say(rows, folder)
    if failed:
        raise RunError(
            f"{len(failed)} of {counted(len(samples), 'sample')} not folded: "
            f"{', '.join(list(failed)[:3])}; the lines above and {files.SUMMARY} say why. The "
            f"others are in {folder}; the same command on a machine that can adds what is missing."
        )


def _fold_missing(
    models: Sequence[MolfunStructureModel],
    samples: Sequence[Sample],
    places: Mapping[str, Path],
    wanted: FoldSettings,
    ranks: Ranks,
) -> dict[str, str]:
    """Fold and write what is not there; return why some samples were not folded, by id."""
    # by the first process: files and free memory change while others look
    numbers, failed = ranks.of_first(lambda: _missing(models[0], samples, places, wanted))
    power = models[0].backbone.length_power
    costs = [_length(samples[number]) ** power for number in numbers]
    own = [samples[numbers[i]] for i in deal(costs, ranks.size)[ranks.index]]
    broken, *others = ranks.gather(_fold(models, own, places, wanted))
    for reasons in others:
        for reason in reasons.values():
            say(f"Not folded: {reason}")
        broken |= reasons
    failed |= broken
    return {sample.id: failed[sample.id] for sample in samples if sample.id in failed}


def _missing(
    model: MolfunStructureModel,
    samples: Sequence[Sample],
    places: Mapping[str, Path],
    wanted: FoldSettings,
) -> tuple[list[int], dict[str, str]]:
    """Return the numbers of the samples to fold, and why others cannot be, by id."""
    work = [s for s in samples if not _is_done(places[s.id], s, plots=wanted.plots)]
    if len(work) < len(samples):
        say(f"{len(samples) - len(work)} of {counted(len(samples), 'structure')} are there")
    failed = too_large(model, work)
    for sentence in failed.values():
        say(f"Not folded: {sentence}")
    wanted_ids = {sample.id for sample in work} - failed.keys()
    return [number for number, s in enumerate(samples) if s.id in wanted_ids], failed


def _length(sample: Sample) -> int:
    """Return the residues of a sample, by which its fold costs; features alone tell none."""
    return 1 if sample.protein is None else len(sample.protein)


def _fold(
    models: Sequence[MolfunStructureModel],
    work: Sequence[Sample],
    places: Mapping[str, Path],
    wanted: FoldSettings,
) -> dict[str, str]:
    """Fold and write samples; return why some are not usable, by id."""
    failed: dict[str, str] = {}
    made = folding.folded(
        models, work, wanted.recycles, wanted.recycle_tolerance, wanted.seed, wanted.precision
    )
    for sample, structure in zip(Progress(work, "folding"), made, strict=True):
        place = places[sample.id]
        # of a former input: a stop between the note and the files would leave them as the new ones
        files.remove_structure(place, sample.id)
        if reason := folding.why_unusable(structure):
            say(f"Not folded: {reason}")
            failed[sample.id] = reason
            continue
        shown = files.as_one_chain(structure) if wanted.unify_chains else structure
        write_json(_request(place, sample.id), {"input": sample.content_key()})
        files.write_structure(shown, place, plots=wanted.plots)
    return failed


def _absent(sample: Sample, reason: str) -> dict[str, Any]:
    """Return the row of a sample that was not folded."""
    protein = sample.protein
    known = {} if protein is None else {"length": len(protein), "chains": len(protein.chain_ids)}
    return {"id": sample.id, **known, "notes": [f"not folded: {reason.rstrip('.')}"]}


def _fingerprint(models: Sequence[MolfunStructureModel]) -> str | list[str]:
    prints = [model.backbone.state_fingerprint() for model in models]
    return prints if len(prints) > 1 else prints[0]


def _say(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the most confident structures, and what must be known of them."""
    ranked = sorted(rows, key=lambda row: -row["confidence"])
    width = max(len(row["id"]) for row in ranked[:SHOWN])
    several = any("member" in row for row in rows)
    say(f"{'id':<{width}}  residues  pLDDT    pTM   ipTM{'  member  spread' * several}")
    for row in ranked[:SHOWN]:
        say(_line(row, width))
    if len(ranked) > SHOWN:
        say(f"... and {len(ranked) - SHOWN} more in {folder / files.SUMMARY}")
    counts = Counter(note for row in rows for note in row["notes"])
    for note, n in counts.items():
        whole = "all" if n == len(rows) else f"{n} of {len(rows)}"
        say(f"Note on {whole}: {note}.")
    say(f"{counted(len(rows), 'structure')} in {folder}: mmCIF, PDB, confidence; {files.SUMMARY}")
    say(f"To look at them: molfun report {folder}")


def _line(row: Mapping[str, Any], width: int) -> str:
    ptm, iptm = (_cell(row[name], 6, 3) for name in ("ptm", "iptm"))
    text = f"{row['id']:<{width}}  {row['length']:>8}  {row['plddt']:>5.1f} {ptm} {iptm}"
    if "member" not in row:
        return text
    return f"{text}  {row['member']:>6}  {_cell(row['spread'], 4, 1)} A"


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


# Input


def _samples(wanted: FoldSettings) -> list[Sample]:
    given = [name for name in ("sequences", "data") if getattr(wanted, name) is not None]
    if not given and wanted.pdbs is not None:
        return _of_folder(wanted.pdbs, wanted.alignments)
    if len(given) != 1:
        raise ConfigError("Give either --sequences FASTA, --data TABLE or --pdbs FOLDER.")
    source = str(getattr(wanted, given[0]))
    if wanted.pdbs is not None:
        return _of_structures(wanted, source)
    samples = list(_of_fasta(source) if is_fasta(source) else _of_table(source, wanted))
    return _aligned(samples, wanted.alignments)


def _of_fasta(path: str) -> Iterator[Sample]:
    """Yield one sample per id; several records of one id are the chains of one sample."""
    chains: dict[str, list[str]] = {}
    for name, sequence in read_fasta(path):
        chains.setdefault(name, []).append(sequence)
    for name, parts in chains.items():
        yield Sample(id=name, sequence=CHAIN_SEPARATOR.join(parts), origin=path)


def _of_table(path: str, wanted: FoldSettings) -> Iterator[Sample]:
    from molfun.data.cells import read_cells

    cells = read_cells(as_path(path), wanted.sequence_column)
    check_choice("column", wanted.sequence_column, cells.header)
    sequences = cells.filled(wanted.sequence_column)
    if wanted.id_column is None:
        ids: Sequence[str] = [f"seq_{number}" for number in range(1, len(cells) + 1)]
    else:
        check_choice("column", wanted.id_column, cells.header)
        ids = cells.ids(wanted.id_column)
    if cells.problems:
        raise DataError(f"{path} cannot be folded:\n{listing(cells.problems)}")
    for row, (name, sequence) in enumerate(zip(ids, sequences, strict=True)):
        yield Sample(id=name, sequence=sequence, origin=f"{path}, {cells.where(row)}")


def _of_structures(wanted: FoldSettings, source: str) -> list[Sample]:
    """Read the proteins of structure files, whose coordinates the model does not see."""
    from molfun.data.affinity import AffinityDataset

    dataset = AffinityDataset.from_csv(
        source,
        wanted.pdbs,
        alignments_dir=wanted.alignments,
        id_column=wanted.id_column or "pdb_id",
        require_target=False,
    ).check()
    return [dataset[i] for i in range(len(dataset))]


def _of_folder(folder: str, alignments: str | None) -> list[Sample]:
    """Read the proteins of all structure files of a folder."""
    from molfun.data.structure_dataset import StructureDataset

    dataset = StructureDataset.from_folder(
        folder, alignments_dir=alignments, require_labels=False
    ).check()
    return [dataset[i] for i in range(len(dataset))]


def _aligned(samples: list[Sample], folder: str | None) -> list[Sample]:
    """Add the alignments ``FOLDER/ID/*.a3m``; say how many samples have none."""
    if folder is None:
        return samples
    names = [sample.id for sample in samples]
    index = FolderIndex(folder)
    places = {name: path for name in names if (path := index.find(name)) is not None}
    found = with_alignments(index.folder, places, names)
    without = [name for name in names if name not in found]
    if without:
        say(f"No alignment for {len(without)} of {len(names)} samples: {', '.join(without[:3])}")
    return [replace(sample, alignment_dir=found.get(sample.id)) for sample in samples]


def _refuse(wanted: FoldSettings, samples: Sequence[Sample]) -> None:
    """Refuse what cannot be written, before the model is read."""
    if wanted.shard_size < 1:
        raise ConfigError(f"--shard-size must be at least 1, got {wanted.shard_size}.")
    files.check_names([sample.id for sample in samples])
    read = ("sequences", "data", "pdbs", "alignments", "weights")
    inputs = {f"--{name}": getattr(wanted, name) for name in read}
    for name in (files.SUMMARY, files.NOTE):
        refuse_inputs(as_path(wanted.output) / name, inputs)


# Output folder


def _claim(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Check that structures in the folder have the same origin, or remove them if asked to."""
    note = folder / files.NOTE
    stored = _read(note)
    if stored is None:
        _refuse_others(folder)
    elif overwrite:
        _remove(folder)
    elif stored != identity:
        names = dict.fromkeys([*identity, *stored])
        different = [key for key in names if stored.get(key) != identity.get(key)]
        raise RunError(
            f"{folder} holds structures made with another {', '.join(different)}. Replace them "
            f"with --overwrite, or choose another --output."
        )
    write_json(note, identity)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with files that are not of this command."""
    # a run that was killed before its note leaves its lock
    own = (".lock", WRITERS)
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise RunError(
            f"{folder} holds {others[0]} and is no folder of molfun fold. Choose another --output."
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Remove the structures of a former run: the files next to each note of a request."""
    for place in (folder, *files.numbered_folders(folder)):
        for request in list(place.glob("*_request.json")):
            stem = request.name.removesuffix("_request.json")
            for own in (place, *place.glob(files.member_folder("*"))):
                for ending in (*files.ENDINGS, "_request.json"):
                    (own / f"{stem}{ending}").unlink(missing_ok=True)
        for member in place.glob(files.member_folder("*")):
            with contextlib.suppress(OSError):  # one with files of the user stays
                member.rmdir()
    (folder / REPORT).unlink(missing_ok=True)


def _places(folder: Path, samples: Sequence[Sample], size: int) -> Iterator[tuple[str, Path]]:
    """Yield the folder of each structure: one folder per `size` of them if there are more."""
    shards = -(-len(samples) // size)
    for number, sample in enumerate(samples):
        shard = f"{number // size:05d}-of-{shards:05d}"
        yield sample.id, folder / shard if shards > 1 else folder


def _request(place: Path, name: str) -> Path:
    return place / f"{files.file_stem(name)}_request.json"


def _is_done(place: Path, sample: Sample, *, plots: bool) -> bool:
    """Return whether the structure of this very input is there, with all of its files."""
    if not files.is_complete(place, sample.id, plots=plots):
        return False
    stored = _read(_request(place, sample.id))
    return isinstance(stored, dict) and stored.get("input") == sample.content_key()


def _models(wanted: FoldSettings) -> list[MolfunStructureModel]:
    """Open the base model, that of a checkpoint, or all of an ensemble."""
    options: dict[str, Any] = {
        "weights": wanted.weights,
        "device": wanted.device,
        "kernels": wanted.kernels,
    }
    if wanted.checkpoint is None:
        return [MolfunStructureModel(wanted.backbone, config=wanted.preset, **options)]
    if wanted.preset is not None:
        raise ConfigError("--preset is for a base model; a checkpoint keeps its own.")
    ensemble: Ensemble | None = open_ensemble(wanted.checkpoint, **options)
    if ensemble is None:
        return [open_model(wanted.checkpoint, **options)]
    say(f"Ensemble of {len(ensemble)} models")
    return ensemble.models
