"""Write a checkpoint for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.cli.command_settings import ExportSettings
from molfun.cli.console import say, set_up_logging
from molfun.cli.models import is_stock, open_model
from molfun.cli.outputs import check_new_folder, check_output
from molfun.models.export import check_suffix, export_hugging_face
from molfun.models.export import export as write_model
from molfun.models.structure import MolfunStructureModel
from molfun.nn.lora import is_adapter


def export(given: Mapping[str, Any]) -> None:
    """Read a checkpoint folder, or a ``.ckpt`` of metatrain, and write the model."""
    wanted, _ = ExportSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    checkpoint, output = wanted.checkpoint, wanted.output
    inputs = {"CHECKPOINT": checkpoint, "--weights": wanted.weights}
    # checked before the model is read, which may take minutes
    if wanted.format == "hf":
        check_new_folder(output, inputs, overwrite=wanted.overwrite)
    else:
        check_suffix(output)
        check_output(output, inputs, overwrite=wanted.overwrite)
    if is_stock(checkpoint):  # whatever its targets are called
        model = MolfunStructureModel("pet", weights=checkpoint, trust=wanted.trust, device="cpu")
    else:
        model = open_model(checkpoint, weights=wanted.weights, device="cpu")
    if wanted.format == "hf":
        export_hugging_face(model, output)
        if model.heads:
            say(f"The head stays in {checkpoint}: the folder holds {model.backbone.display_name}.")
    else:
        write_model(model, output)
    # adapters are folded into the weights of the file, so they are not counted
    written = model.backbone if wanted.format == "hf" else model
    n = sum(p.numel() for name, p in written.named_parameters() if not is_adapter(name))
    say(f"{model.backbone.display_name} ({n:,} params) written to {output}")
