"""A class that lacks what is used of every backbone is refused when it is made, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from molfun.backbones.base import MUST_DO, Backbone, Features, Layer
from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.kernels import choose_kernels
from molfun.backbones.tensor_input import split_batch
from molfun.errors import ConfigError, ContractError, DataError
from molfun.sample import Sample
from molfun.trunk import TrunkOutput


class Base(Backbone):
    """The seven methods in the shortest form; abstract as it leaves `blocks` open."""

    def featurize(self, sample: Sample) -> Features:
        return {"x": torch.ones(len(sample.sequence or ""))}

    def collate(self, features: Sequence[Features]) -> Features:
        return {"x": torch.stack([f["x"] for f in features])}

    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        raise NotImplementedError

    def layer_of(self, parameter: str) -> Layer:
        return Layer("embedder")

    @property
    def config_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        return config


def make(**changes: Any) -> type[Backbone]:
    """A complete backbone, but for the changes; None leaves an attribute out."""

    def init(self: Any, *, weights: Any = None, seed: int = 0) -> None:
        super(Base, self).__init__()

    content = {
        "name": "toy",
        "display_name": "Toy",
        "inputs": ("sequences",),
        "block_prefix": "blocks_",
        "lora_targets": ("mix",),
        "blocks": lambda self: [nn.Linear(2, 2)],
        "__init__": init,
        **changes,
    }
    return type("Toy", (Base,), {k: v for k, v in content.items() if v is not None})


def test_seven_methods_are_asked_for() -> None:
    names = "arguments_from blocks collate config_dict featurize forward layer_of"
    assert tuple(names.split()) == MUST_DO
    own = [n for n in vars(Backbone) if callable(getattr(Backbone, n)) and not n.startswith("_")]
    assert len(own) <= 19  # what only some can do is a mix-in


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("name", "Registered name."),
        ("display_name", "Name shown to people."),
        ("inputs", "Kinds of data it takes, the usual one first"),
        ("block_prefix", "Module path of the list of blocks"),
        ("lora_targets", "Module-name suffixes inside the blocks"),
    ],
)
def test_a_missing_attribute_is_named(name: str, meaning: str) -> None:
    text = f"The backbone Toy must set the class attribute {name}: {meaning}"
    with pytest.raises(ContractError, match=text):
        make(**{name: None})


@pytest.mark.parametrize(
    ("init", "missing"),
    [
        (lambda self, width=8: None, "weights and seed"),
        (lambda self, weights=None: None, "seed"),
        (lambda self, seed=0: None, "weights"),
    ],
)
def test_a_constructor_takes_weights_and_seed(init: Any, missing: str) -> None:
    with pytest.raises(TypeError, match=rf"Toy.__init__ must take {missing}: every model is built"):
        make(__init__=init)
    make(__init__=lambda self, **options: None)


def test_a_constructor_sets_the_width() -> None:
    toy = make()()
    with pytest.raises(ContractError, match=r"Toy.__init__ must set self\.single_dim\."):
        assert toy.single_dim
    assert toy.pair_dim is None
    toy.single_dim = 8
    assert toy.single_dim == 8


def test_an_unfinished_class_may_be_a_base_of_others() -> None:
    with pytest.raises(TypeError, match="blocks"):
        make(blocks=None, name=None)()


def test_defaults_are_those_of_no_backbone_in_particular() -> None:
    toy = make()
    assert (toy.default_head, toy.kernels, toy.pair_dim) == ("mlp", "stock", None)
    with pytest.raises(ConfigError, match=r"Toy has 'stock' kernels only\. Use kernels='auto'"):
        choose_kernels(toy(), "fast")
    with pytest.raises(ConfigError, match="Unknown kernels 'fats'; known: auto, fast, stock"):
        choose_kernels(toy(), "fats")  # type: ignore[arg-type]


def test_tensors_in_place_of_samples_need_a_backbone_that_takes_them_apart() -> None:
    with pytest.raises(DataError, match="Pre-training of ESM-2 needs samples, not tensors"):
        split_batch(ESM2Backbone("esm2_tiny"), {})
