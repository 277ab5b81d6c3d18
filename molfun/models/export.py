"""Export models for other programs: PET for engines and metatrain, sequences for transformers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from molfun._io import atomic_directory, atomic_path, same_file
from molfun._paths import as_path
from molfun.errors import ConfigError
from molfun.models.structure import MolfunStructureModel
from molfun.nn import lora

SUFFIXES = (".pt", ".ckpt")
Format = Literal["auto", "hf"]
"""``"hf"`` is a Hugging Face folder; ``"auto"`` goes by the ending of the name."""


def export(model: MolfunStructureModel, path: str | Path) -> None:
    """Write a PET model in a format of metatrain: for simulation engines, or for more training.

    Adapters are merged into the written weights; the model itself stays as it is.

    Parameters
    ----------
    model
        A model with the backbone ``"pet"``, and its own head or none.
    path
        ``.pt`` is TorchScript, for ASE (``metatomic_ase.MetatomicCalculator``), LAMMPS, i-PI ...;
        ``.ckpt`` a checkpoint of metatrain.

    Raises
    ------
    ConfigError
        If the backbone is not PET, the head is not its own, or the file name has another ending.

    Examples
    --------
    >>> model = MolfunStructureModel.from_checkpoint("runs/pet/checkpoint")  # doctest: +SKIP
    >>> export(model, "model.pt")  # doctest: +SKIP
    """
    path = as_path(path)
    check_suffix(path)
    if model.backbone.name != "pet":
        raise ConfigError(
            f"Only models with the backbone 'pet' can be exported; this one has "
            f"{model.backbone.name!r}. Use its checkpoint folder with molfun predict."
        )
    others = [part.head_name for part in model.heads if part.head_name != "energy"]
    if others:
        raise ConfigError(
            f"The head {others[0]!r} is Molfun's own, and an exported file holds the "
            f"energies of PET alone. Use the checkpoint folder with molfun predict."
        )
    if model.weights is not None and same_file(path, Path(model.weights)):
        raise ConfigError(
            f"{path} is the file that the model's own weights came from. Choose another name."
        )
    backbone: Any = model.backbone
    # engines and metatrain's own loader expect plain layers, without adapters
    with _merged(backbone):
        stock = backbone.stock_model()
    if path.suffix == ".ckpt":
        # imported here: metatrain is an optional package
        from molfun.backbones.pet.weights import write_checkpoint

        write_checkpoint(stock, path)
    else:
        with atomic_path(path) as temporary, warnings.catch_warnings():
            # TorchScript, in which metatomic is written, is deprecated by torch
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            stock.export().save(str(temporary))


def check_suffix(path: str | Path) -> None:
    """Check that a file name ends in ``.pt`` or ``.ckpt``.

    Raises
    ------
    ConfigError
        If it has another ending.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} must end in .pt (TorchScript, for ASE and other engines) or .ckpt (a "
            f"checkpoint of metatrain)."
        )


@contextlib.contextmanager
def _merged(backbone: Any) -> Iterator[None]:
    """Merge adapters inside a ``with`` block."""
    if lora.installed_spec(backbone) is None or lora.is_merged(backbone):
        yield
        return
    lora.merge(backbone)
    try:
        yield
    finally:
        lora.unmerge(backbone)


def export_hugging_face(model: MolfunStructureModel, folder: str | Path) -> None:
    """Write a protein language model as a Hugging Face folder, its adapters merged.

    The folder holds ``config.json``, ``model.safetensors`` and, for ESM's letters, the files of the
    tokenizer. Molfun's heads are no part of it; the model itself stays as it is.

    Parameters
    ----------
    model
        A model with a backbone for protein sequences.
    folder
        Folder to write; one that is there is replaced.

    Raises
    ------
    ConfigError
        If transformers has no such model.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "model"
    >>> export_hugging_face(MolfunStructureModel("esm2_tiny"), folder)
    >>> sorted(file.name for file in folder.iterdir())[:2]
    ['config.json', 'model.safetensors']
    """
    backbone: Any = model.backbone
    if not hasattr(backbone, "write_hugging_face"):
        raise ConfigError(
            f"transformers has no class for {backbone.display_name}: only protein language models "
            f"can be exported with --format hf."
        )
    # plain layers are expected, without adapters
    with _merged(backbone), atomic_directory(as_path(folder)) as place:
        backbone.write_hugging_face(place)
