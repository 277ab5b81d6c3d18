"""Read weights of language models: single files, Hugging Face folders, shards."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import is_safetensors, load_safetensors, load_torch, save_safetensors
from molfun.backbones.state_dicts import KeyReport, match_keys, shape_conflicts, tensors_in
from molfun.errors import CheckpointError
from molfun.nn import mapped
from molfun.text import listing

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Layout:
    """How the weights of a model are named in its files, and which of them a file may lack.

    Parameters
    ----------
    model
        Name and size of the model, for messages: "ESM-2 (6 blocks, width 320)".
    canonical
        Function that gives a weight the same name in every published layout.
    optional
        Parts of the names of weights that no representation needs.
    pointless
        Function that says of a name in a file that the model has no use for it, without a warning.
    advice
        Function of the tensors in a file that says what to do if they do not fit.
    """

    model: str
    canonical: Callable[[str], str]
    optional: tuple[str, ...] = ()
    pointless: Callable[[str], bool] = lambda _: False
    advice: Callable[[Mapping[str, torch.Tensor]], str] = lambda _: ""


def take_tensors(
    own: Mapping[str, torch.Tensor],
    tensors: Tensors,
    path: Path,
    layout: Layout,
    *,
    mapping: Mapping[str, nn.Parameter] | None = None,
) -> list[str]:
    """Copy the tensors of a file into those of a model, and report every difference.

    Parameters
    ----------
    own
        Weights of the model, tied ones once.
    tensors
        Weights of the file; each is let go of as soon as it is copied.
    path
        The file, for messages.
    layout
        Names of the weights.
    mapping
        Weights that become parts of the file (`molfun.nn.mapped`), or of temporary ones.

    Returns
    -------
    list
        Names of weights that the file lacks and no representation needs; they stay random.

    Raises
    ------
    CheckpointError
        If the file is made for another model; the text lists the weights that do not match.
    """
    matched, report = match_keys(tensors, own, layout.canonical)
    optional = [n for n in report.missing if any(part in n for part in layout.optional)]
    _refuse_others(path, layout, set(report.missing) - set(optional), matched, own, tensors)
    _warn_leftovers(path, layout, report)
    _warn_random_heads(path, optional)
    tensors.clear()
    _take_up(own, matched, mapping or {}, own_file=is_safe(path))
    return optional


def _refuse_others(
    path: Path,
    layout: Layout,
    lacking: Iterable[str],
    matched: Tensors,
    own: Mapping[str, torch.Tensor],
    tensors: Tensors,
) -> None:
    missing, wrong = sorted(lacking), shape_conflicts(matched, own)
    if missing or wrong:
        raise CheckpointError(
            f"{path} does not fit this {layout.model}: {len(missing)} weights missing, "
            f"{len(wrong)} of another shape:\n{listing([*missing[:5], *wrong[:5]], 10)}\n"
            f"{layout.advice(tensors)}".rstrip()
        )


def _warn_leftovers(path: Path, layout: Layout, report: KeyReport) -> None:
    unexpected = [n for n in report.unexpected if not layout.pointless(n)]
    if unexpected:
        logger.warning(
            "%s: %d weights have no place in %s and are left out:\n%s",
            path,
            len(unexpected),
            layout.model.partition(" (")[0],
            listing(unexpected, 5),
        )


def _warn_random_heads(path: Path, missing: list[str]) -> None:
    heads = sorted({part for n in missing for part in n.split(".") if part.endswith("_head")})
    if heads:
        logger.warning(
            "%s has no weights for %s: masked-residue or contact predictions start from random "
            "ones; representations are not affected.",
            path,
            " and ".join(heads),
        )


@torch.no_grad()
def _take_up(
    own: Mapping[str, torch.Tensor],
    matched: Tensors,
    mapping: Mapping[str, nn.Parameter],
    *,
    own_file: bool,
) -> None:
    """Copy tensors into those of the model, but map those of `mapping`, and let go of each.

    With `own_file` tensors are parts of their file already, and stay it if they are in float32;
    others become parts of temporary files.
    """
    for name in list(matched):
        # files in half precision are loaded as float32, in which the weights train
        tensor = matched.pop(name)
        if name not in mapping:
            own[name].copy_(tensor.float())
            continue
        as_it_is = own_file and tensor.dtype == torch.float32
        mapped.put_into(mapping[name], tensor if as_it_is else mapped.to_file(tensor.float()))


def is_safe(path: Path) -> bool:
    """Return whether weights are in safetensors, which are mapped tensor by tensor."""
    return any(path.glob("model.safetensors*")) if path.is_dir() else is_safetensors(path)


# --- reading -------------------------------------------------------------------------------------


def read_tensors(path: Path, *, apart: bool, beside: str = "") -> Tensors:
    """Read all tensors of a file or a Hugging Face folder.

    Parameters
    ----------
    path
        ``.safetensors``, a state dict of torch (as it is, or under ``"model"``), or a folder.
    apart
        Whether to map the file and read each tensor when it is used.
    beside
        Ending of a second file next to a ``.pt``, whose tensors are read as well if it is there.

    Raises
    ------
    CheckpointError
        If there is nothing of that kind.
    UnsafeFileError
        If the file holds anything but tensors and plain values.
    """
    if path.is_dir():
        return _read_folder(path, apart=apart)
    if is_safetensors(path):
        return load_safetensors(path, apart=apart)
    # Meta's files hold their settings as an argparse.Namespace, which runs nothing when it is made
    content = load_torch(path, allow=[Namespace], mmap=apart)
    state = content.get("model", content) if isinstance(content, Mapping) else {}
    tensors = tensors_in(state)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict of tensors (looked at the top level and under 'model')."
        )
    second = path.with_name(path.stem + beside)
    if beside and second.is_file():
        tensors.update(tensors_in(load_torch(second, allow=[Namespace]).get("model", {})))
    return tensors


def _read_folder(folder: Path, *, apart: bool) -> Tensors:
    """Read the weights of a Hugging Face folder, from one file or from shards."""
    for index in (_SAFE[1], _PICKLED[1]):
        if (folder / index).is_file():
            shards = read_json(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(f"{folder / index} has no weight_map of names and files.")
            return _read_shards(folder, sorted(set(map(str, shards.values()))), apart=apart)
    for name in (_SAFE[0], _PICKLED[0]):
        if (folder / name).is_file():
            return _read_shards(folder, [name], apart=apart)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin (found: {found})."
    )


def _read_shards(folder: Path, names: list[str], *, apart: bool) -> Tensors:
    tensors: Tensors = {}
    for name in names:
        # a name with a path could read any file of the machine
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{folder}: the index names {name!r}, which is no file in it.")
        file = folder / name
        safe = is_safetensors(file)
        content = load_safetensors(file, apart=apart) if safe else load_torch(file, mmap=apart)
        tensors.update(tensors_in(content))
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file holds another thing.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return content if isinstance(content, dict) else {}


def write_folder(folder: Path, config: Any, weights: Mapping[str, torch.Tensor], cls: str) -> None:
    """Write a transformers config and weights in the names of its class as a Hugging Face folder.

    ``save_pretrained`` would need a second model in memory, and show a progress bar.
    """
    config.architectures = [cls]
    config.save_pretrained(folder)
    save_safetensors(folder / "model.safetensors", weights, {"format": "pt"})


def compare_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a ``config.json`` whose settings would give other numbers with the same weights.

    Raises
    ------
    CheckpointError
        With one line per setting.
    """
    theirs = read_json(path) if path.is_file() else {}
    wrong = [
        f"{name}: {theirs[name]!r} there, {ours!r} in this model"
        for name, ours in settings.items()
        if name in theirs and theirs[name] != ours
    ]
    if wrong:
        raise CheckpointError(f"{path} is of another model:\n{listing(wrong)}")
