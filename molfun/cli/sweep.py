"""Choose the block that a head reads, before a run trains it."""

from __future__ import annotations

from typing import Any

import yaml

from molfun.cli.console import say
from molfun.cli.settings import FineTuneSettings
from molfun.errors import ConfigError
from molfun.models.layer_sweep import LayerSweep, sweep_layers
from molfun.models.structure import MolfunStructureModel
from molfun.runs.folder import RunFolder
from molfun.text import three_digits


def with_best_layer(
    settings: FineTuneSettings, folder: RunFolder, model: Any, train: Any, val: Any
) -> FineTuneSettings:
    """Return the settings with the block whose representation does best on the validation set.

    Parameters
    ----------
    settings
        Settings of the run.
    folder
        Its folder, in which a run that goes on finds the block of its start.
    model
        Function that builds the model with all blocks.
    train, val
        Training and validation set.

    Raises
    ------
    ConfigError
        If there is no validation set, or the layers of the model cannot be compared.
    """
    if settings.layer is not None:
        raise ConfigError("--sweep layer chooses the block: leave --layer out.")
    if (before := _chosen_before(folder)) is not None:
        return settings.model_copy(update={"layer": before})
    if val is None:
        raise ConfigError("--sweep layer compares on a validation set: raise --val-frac.")
    built: MolfunStructureModel = model()
    found = sweep_layers(
        built,
        train,
        val,
        epochs=settings.epochs,
        batch_size=settings.samples_per_batch,
        seed=settings.seed,
    )
    _say(found)
    return settings.model_copy(update={"layer": found.best})


def _chosen_before(folder: RunFolder) -> int | None:
    """Return the block of the run that goes on, None for a new run."""
    path = folder.path / "config.yaml"
    if not folder.resume or not path.is_file():
        return None
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    layer = content.get("layer") if isinstance(content, dict) else None
    return layer if isinstance(layer, int) else None


def _say(found: LayerSweep) -> None:
    names = [name for name in found.rows[0] if name.startswith("val/")]
    say(f"Layers, by {found.monitor}:")
    for row in found.rows:
        values = "  ".join(f"{n.removeprefix('val/')}={three_digits(row[n])}" for n in names)
        mark = " <-" if row["layer"] == found.best else ""
        say(f"  layer {row['layer']:3d}  val_loss={three_digits(row['val_loss'])}  {values}{mark}")
