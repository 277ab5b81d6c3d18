"""Write a checkpoint for other programs."""

from __future__ import annotations

from pathlib import Path

from molfun.cli.console import say
from molfun.models.export import check_suffix, export
from molfun.models.structure import MolfunStructureModel


def run(checkpoint: str, output: str, *, weights: str | None, trust: bool) -> None:
    """Read a checkpoint folder, or a ``.ckpt`` of metatrain, and write the model."""
    check_suffix(output)
    if Path(checkpoint).expanduser().is_dir() or Path(checkpoint).suffix != ".ckpt":
        model = MolfunStructureModel.from_checkpoint(checkpoint, weights=weights, device="cpu")
    else:
        model = MolfunStructureModel("pet", weights=checkpoint, trust=trust, device="cpu")
    export(model, output)
    say(f"{model.backbone.display_name} ({model.count_parameters():,} params) written to {output}")
