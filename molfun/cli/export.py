"""Write a checkpoint for other programs."""

from __future__ import annotations

from molfun.cli.console import say
from molfun.cli.models import is_stock, open_model
from molfun.cli.outputs import check_output
from molfun.models.export import check_suffix, export
from molfun.models.structure import MolfunStructureModel
from molfun.nn.lora import is_adapter


def run(checkpoint: str, output: str, *, weights: str | None, trust: bool, overwrite: bool) -> None:
    """Read a checkpoint folder, or a ``.ckpt`` of metatrain, and write the model."""
    check_suffix(output)
    check_output(output, {"CHECKPOINT": checkpoint, "--weights": weights}, overwrite=overwrite)
    if is_stock(checkpoint):  # whatever its targets are called
        model = MolfunStructureModel("pet", weights=checkpoint, trust=trust, device="cpu")
    else:
        model = open_model(checkpoint, weights=weights, device="cpu")
    export(model, output)
    n = sum(p.numel() for name, p in model.named_parameters() if not is_adapter(name))
    say(f"{model.backbone.display_name} ({n:,} params) written to {output}")
