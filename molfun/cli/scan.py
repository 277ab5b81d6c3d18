"""Scan the variants of a protein: scores of a language model, or predictions of a trained one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text
from molfun._paths import as_path
from molfun.cli.command_settings import ScanSettings
from molfun.cli.console import say, set_up_logging
from molfun.cli.models import open_ensemble, open_model
from molfun.cli.outputs import check_output
from molfun.cli.tables import predicted_columns
from molfun.data.cells import escape, read_cells
from molfun.data.structures import read_structure
from molfun.data.variant_tables import names_file, read_wild_type
from molfun.data.variants import Variant, all_substitutions, parse_variants
from molfun.errors import ConfigError
from molfun.models.structure import MolfunStructureModel
from molfun.models.variant_scores import VariantScores, substitution_matrix
from molfun.report.heat_map import check_ending, left_out, scored_places, write_heat_map
from molfun.sample import Sample
from molfun.text import counted

Columns = dict[str, Sequence[str]]
NO_FIGURE = "none"


def scan(given: Mapping[str, Any]) -> None:
    """Score variants, write a table, and draw the single substitutions."""
    wanted, _ = ScanSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    table, figure = _outputs(wanted)
    sample, sequence = _wild_type(wanted)
    variants = _variants(wanted, sequence)
    found = _zero_shot(wanted, sample, variants) if wanted.checkpoint is None else None
    if found is not None:
        columns: Columns = {"score": [repr(float(score)) for score in found.scores]}
        shown = _Shown(
            found.scores, f"score ({wanted.method})", _entropy(found, variants, sequence)
        )
    else:
        columns, shown = _trained(wanted, sample, sequence, variants)
    _write(table, {**_names(variants, wanted.offset), **columns})
    n = sum(bool(variant.changes) for variant in variants)
    also = " and the wild type" if n < len(variants) else ""
    say(f"{counted(n, 'variant')} of {sample.id}{also} written to {table}")
    matrix = substitution_matrix(sequence, variants, shown.values)
    places = scored_places(matrix, sequence)
    if figure is not None and len(places):
        write_heat_map(
            figure,
            matrix,
            sequence,
            offset=wanted.offset,
            entropy=shown.entropy,
            label=shown.label,
            title=sample.id,
        )
        missing = left_out(len(places), len(sequence))
        say(f"Heat map: {figure}{f' ({missing})' if missing else ''}")


@dataclass(frozen=True)
class _Shown:
    """Values, title and entropies of the heat map."""

    values: np.ndarray
    label: str
    entropy: np.ndarray | None = None


# --- what is asked for ---------------------------------------------------------------------------


def _outputs(wanted: ScanSettings) -> tuple[Path, Path | None]:
    """Return the files to write, or refuse them before anything is computed."""
    table = as_path(wanted.output)
    figure = as_path(wanted.figure) if wanted.figure else table.with_suffix(".svg")
    inputs = {
        name: value
        for name, value in {
            "CHECKPOINT": wanted.checkpoint,
            "--sequence": wanted.sequence if names_file(wanted.sequence) else None,
            "--pdb": wanted.pdb,
            "--variants": wanted.variants if names_file(wanted.variants) else None,
            "--weights": wanted.weights,
        }.items()
        if value is not None
    }
    if wanted.figure == NO_FIGURE:
        check_output(table, inputs, overwrite=wanted.overwrite)
        return table, None
    if (problem := check_ending(figure)) is not None:
        raise ConfigError(f"--figure: {problem}")
    if figure == table:
        raise ConfigError(f"{table} is the name of a figure. Give a table: --output scan.csv.")
    check_output(table, inputs, overwrite=wanted.overwrite, beside=[figure])
    return table, figure


def _wild_type(wanted: ScanSettings) -> tuple[Sample, str]:
    """Return the wild type as a sample, and its sequence."""
    if (wanted.sequence is None) == (wanted.pdb is None):
        raise ConfigError("Give the wild type: --sequence FASTA, or --pdb FILE.")
    if wanted.pdb is not None:
        protein = read_structure(wanted.pdb, chains=wanted.chain)
        if len(protein.chain_ids) > 1:
            raise ConfigError(
                f"{wanted.pdb} has the chains {', '.join(protein.chain_ids)}: choose one with "
                f"--chain."
            )
        return Sample(id=protein.name, protein=protein), protein.sequence
    name, sequence = read_wild_type(str(wanted.sequence))
    return Sample(id=name, sequence=sequence), sequence


def _variants(wanted: ScanSettings, sequence: str) -> list[Variant]:
    if wanted.variants is None:
        return list(all_substitutions(sequence))
    if not names_file(wanted.variants):
        texts = [text for text in wanted.variants.split(",") if text.strip()]
        return parse_variants(texts, sequence, offset=wanted.offset)
    cells = read_cells(as_path(str(wanted.variants)), wanted.mutant_column)
    cells.require({wanted.mutant_column: "mutant_column"})
    texts = list(cells.column(wanted.mutant_column))
    names = [f"{cells.path}, {cells.where(row)}" for row in range(len(texts))]
    return parse_variants(texts, sequence, offset=wanted.offset, names=names)


# --- scores --------------------------------------------------------------------------------------


def _zero_shot(
    wanted: ScanSettings,
    sample: Sample,
    variants: Sequence[Variant],
    model: MolfunStructureModel | None = None,
) -> VariantScores:
    if model is None:
        settings = {"long": wanted.long, "plddt_below": wanted.plddt_below}
        model = MolfunStructureModel(
            wanted.backbone,
            config=wanted.preset,
            weights=wanted.weights,
            device=wanted.device,
            backbone_config={k: v for k, v in settings.items() if v is not None},
        )
    return model.score_variants(
        sample,
        [variant.name() for variant in variants],
        method=wanted.method,
        batch_tokens=wanted.batch_tokens,
        precision=wanted.precision,
    )


def _entropy(found: VariantScores, variants: Sequence[Variant], sequence: str) -> np.ndarray | None:
    """Return the entropy at each residue, if all residues have one."""
    scanned = {change.place for variant in variants for change in variant.changes}
    if found.log_probs is None or len(scanned) < len(sequence):
        return None
    return found.entropy()


def _trained(
    wanted: ScanSettings, sample: Sample, sequence: str, variants: Sequence[Variant]
) -> tuple[Columns, _Shown]:
    """Return the columns of a fine-tuned model, and what the heat map shows of them."""
    predictor, model = _opened(wanted)
    letters = {"structure_letters": sample.structure_letters, "protein": sample.protein}
    samples = [sample] + [
        Sample(id=variant.name(), sequence=variant.apply(sequence), **letters)  # type: ignore[arg-type]  # by their names
        for variant in variants
    ]
    bounds = {} if wanted.coverage is None else {"coverage": wanted.coverage}
    found = predictor.predict(samples, **bounds)
    columns = {name: cells[1:] for name, cells in predicted_columns(found).items()}
    if wanted.zero_shot:
        scores = _zero_shot(wanted, sample, variants, model).scores
        columns["zero_shot"] = [repr(float(score)) for score in scores]
    first = next(iter(columns))
    values = _numbers(predicted_columns(found)[first])
    return columns, _Shown(values[1:] - values[0], f"{first}, less that of the wild type")


def _opened(wanted: ScanSettings) -> tuple[Any, MolfunStructureModel]:
    """Return the ensemble or the model of the checkpoint, and the first model."""
    checkpoint = str(wanted.checkpoint)
    if wanted.precision is not None and not wanted.zero_shot:
        raise ConfigError(
            "--precision is that of scores: a fine-tuned model predicts in the precision of its "
            "training. Leave it out, or add --zero-shot."
        )
    options: dict[str, Any] = {"weights": wanted.weights, "device": wanted.device}
    ensemble = open_ensemble(checkpoint, **options)
    if ensemble is None and wanted.coverage is not None:
        raise ConfigError(
            f"--coverage needs the errors of a model on rows that it never saw, and {checkpoint} "
            f"is a single model. Run molfun cv, and scan with the folder ensemble/ of that."
        )
    model = open_model(checkpoint, **options) if ensemble is None else ensemble.first
    if not model.heads:
        raise ConfigError(
            f"{checkpoint} has no head. Scan with its language model: leave CHECKPOINT out and "
            f"give --weights."
        )
    return (model if ensemble is None else ensemble), model


def _numbers(cells: Sequence[str]) -> np.ndarray:
    """Return cells as numbers, NaN where a cell is none."""
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.full(len(cells), np.nan)


# --- output --------------------------------------------------------------------------------------


def _names(variants: Sequence[Variant], offset: int) -> Columns:
    """Return the columns that say what a variant is; of several residues only its name."""
    single = [variant.changes[0] if len(variant.changes) == 1 else None for variant in variants]
    return {
        "variant": [variant.name(offset=offset) for variant in variants],
        "position": ["" if c is None else str(c.place + 1 + offset) for c in single],
        "wild_type": ["" if c is None else c.old for c in single],
        "mutant": ["" if c is None else c.new for c in single],
    }


def _write(path: Path, columns: Columns) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(escape, columns))
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())
