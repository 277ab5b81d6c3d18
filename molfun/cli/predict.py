"""Predict and evaluate from a checkpoint alone."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from molfun._io import write_json
from molfun.cli.console import metric_line, progress, say
from molfun.cli.tables import write_predictions
from molfun.data import AffinityDataset
from molfun.models.checkpoint import read_meta
from molfun.models.structure import MolfunStructureModel

logger = logging.getLogger(__name__)


def open_data(
    checkpoint: str,
    *,
    data: str,
    pdbs: str | None,
    features: str | None,
    alignments: str | None,
    max_length: int | None,
    skip_missing: bool,
    labels: bool,
) -> AffinityDataset:
    """Read the table and check its structures, cropped as in training unless told otherwise."""
    trained = read_meta(checkpoint).data
    dataset = AffinityDataset.from_csv(
        data,
        pdbs,
        features_dir=features,
        alignments_dir=alignments,
        max_length=trained.get("max_length") if max_length is None else max_length,
        crop=trained.get("crop", "auto"),
        skip_missing=skip_missing,
        require_target=labels,
    ).check()
    aligned = bool(dataset.input_settings["alignments"])
    if aligned != bool(trained.get("alignments")):
        with_or_without = "without" if aligned else "with"
        logger.warning(
            "The model was trained %s alignments; these samples are the other way round, so "
            "predictions will differ (--alignments FOLDER).",
            with_or_without,
        )
    return dataset


def _loader(dataset: AffinityDataset, batch_size: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=AffinityDataset.collate_fn,
    )


def predict(
    model: MolfunStructureModel, dataset: AffinityDataset, output: str, batch_size: int
) -> None:
    """Write a prediction for every row."""
    result = model.predict(progress(_loader(dataset, batch_size), "predicting"))
    values = result["prediction"].numpy()
    write_predictions(Path(output), result["ids"], values, dataset.targets)
    say(f"{len(values)} predictions written to {output}")


def evaluate(
    model: MolfunStructureModel, dataset: AffinityDataset, output: str | None, batch_size: int
) -> None:
    """Print the metrics, and write them as JSON if asked to."""
    metrics = model.evaluate(progress(_loader(dataset, batch_size), "evaluating"))
    say(f"{len(dataset)} samples: {metric_line(metrics)}")
    if output is not None:
        write_json(output, {k: None if math.isnan(v) else v for k, v in metrics.items()})
