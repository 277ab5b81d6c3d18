"""Import once, in the server of `warm`, all that tests in processes of their own need."""

from __future__ import annotations

import contextlib
import importlib

from molfun.parallel.launch import _known_by_version

with _known_by_version("torchmetrics"):  # as a fit does it
    import lightning_fabric  # noqa: F401

COMMANDS = ("main", "fine_tune", "cv", "predict", "pretrain", "schema", "showing", "fold")
BACKBONES = ("openfold", "esm2", "timeseries", "pet")
for _name in (
    *("pytest", "peft", "torch.distributed.run", "metatrain.pet", "tiny"),
    *(f"molfun.cli.{name}" for name in COMMANDS),
    *(f"molfun.backbones.{name}.backbone" for name in BACKBONES),
):
    with contextlib.suppress(ImportError):  # of an extra that is not installed
        importlib.import_module(_name)
