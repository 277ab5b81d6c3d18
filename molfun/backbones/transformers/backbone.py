"""Base of the protein language models of ``transformers``."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from molfun._paths import as_path
from molfun.backbones.language.backbone import LanguageBackbone
from molfun.backbones.language.packing import PackedAttention, Packing, use_packed_blocks
from molfun.backbones.language.weight_files import (
    Layout,
    Tensors,
    compare_settings,
    read_json,
    read_tensors,
    take_tensors,
    write_folder,
)
from molfun.backbones.transformers.vocabulary import compare_vocabulary, write_tokenizer
from molfun.errors import ConfigError
from molfun.registry import BACKBONES, FAMILIES
from molfun.strict import check_choice, refuse_unknown, wrong_counts
from molfun.text import listing

_OLD_NORMS = {"gamma": "weight", "beta": "bias"}
"""Other names of LayerNorm weights, which files saved by old versions of transformers have."""


@dataclass(frozen=True)
class Architecture:
    """Those settings of a transformers config that decide the numbers of a model."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("values", {}):
            return self.values[name]
        raise AttributeError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dict(self.values)


class TransformersBackbone(LanguageBackbone):
    """A protein language model of Hugging Face ``transformers``, on packed sequences.

    The modules are those of transformers, with their weights, names and adapters; only attention
    runs on packed tokens (`molfun.backbones.language.packing`). Made with the config of a model, or
    with the folder of its weights, the class returns a backbone of the family that the config
    names.

    Parameters
    ----------
    config
        A transformers config; a Hugging Face folder or its ``config.json``; the name of a preset or
        a mapping of settings, where the family is known. None reads that of the folder `weights`.
    weights
        Hugging Face folder, or a file of its weights: safetensors, or a state dict of torch, read
        without running code. None gives a random initialisation.
    **settings
        As for `molfun.backbones.language.LanguageBackbone`: ``seed``, ``long``, ``context``,
        ``checkpointing``, ``layer``, ``base`` and ``mmap``.

    Raises
    ------
    ConfigError
        If the config is of no family that Molfun knows; the text lists them.

    Examples
    --------
    >>> from transformers import EsmcConfig
    >>> config = EsmcConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    ... )
    >>> TransformersBackbone(config).display_name
    'ESM-C'
    """

    name = "transformers"
    display_name = "a model of transformers"
    stock_prefix = "model."

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Published sizes by name."""
    settings: ClassVar[Mapping[str, Any]]
    """Settings that decide numbers, as in the transformers config, with those of published models;
    a size that has no usual value is None."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Settings that a config may have with this value alone."""
    divides: ClassVar[tuple[str, str] | None] = None
    """Settings of the width and of the number of heads that has to divide it."""
    packed_class: ClassVar[type[nn.Module]]
    """`PackedBlock` of the blocks."""
    root: ClassVar[str] = ""
    """Prefix of the names of the encoder in files of the whole model: ``"esm."``; empty where the
    encoder is all of it."""
    rotary_name: ClassVar[str] = ""
    """Name of the encoder's module of rotary frequencies; empty where it never has one."""
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Patterns of the names that other versions gave to weights, and those of this one."""
    optional: ClassVar[tuple[str, ...]] = ("lm_head.",)
    """Parts of the names of weights that a file may lack: no representation needs them."""
    pointless: ClassVar[str] = r"$^"
    """Pattern of the names of weights in files that the model has no use for."""
    # no value here: one of the class would hide the module
    lm_head: nn.Module | None
    """Head that predicts residues; None where the model is an encoder alone."""

    def __new__(cls, config: Any = None, **settings: Any) -> TransformersBackbone:
        """Return an instance of the family that the config names."""
        if cls is not TransformersBackbone:
            return super().__new__(cls)
        source = settings.get("weights") if config is None else config
        content = _content(source)
        if content is None:
            raise ConfigError(_not_a_config(source))
        return super().__new__(family_of(content))

    def __init__(
        self, config: Any = None, *, weights: str | Path | None = None, **settings: Any
    ) -> None:
        if config is None:
            config = next(iter(self.presets)) if _content(weights) is None else weights
        super().__init__(config, weights=weights, **settings)

    @classmethod
    def architecture(cls, config: Any) -> Architecture:
        """Return the settings that decide numbers of a preset, a mapping or a config."""
        known = {**cls.settings, **cls.fixed}
        content = _content(config)
        if isinstance(config, str) and content is None:
            check_choice(f"{cls.display_name} config", config, cls.presets)
            given: Mapping[str, Any] = cls.presets[config]
        elif content is not None and "model_type" in content:
            given = {k: v for k, v in cls.from_hugging_face(content).items() if k in known}
        else:
            given = config
            refuse_unknown(f"key in the {cls.display_name} config", given, known)
        values = cls.complete({**known, **given})
        cls._refuse_other(values)
        return Architecture({key: values[key] for key in cls.settings})

    @classmethod
    def _refuse_other(cls, values: Mapping[str, Any]) -> None:
        lacking = [key for key in cls.settings if values[key] is None]
        if lacking:
            raise ConfigError(f"The {cls.display_name} config lacks {', '.join(lacking)}.")
        sizes = {key: values[key] for key, default in cls.settings.items() if default is None}
        problems = wrong_counts(**sizes) or cls._wrong_heads(values)
        problems += [
            f"{key} is {values[key]!r}, and only {value!r} is known."
            for key, value in cls.fixed.items()
            if values[key] != value
        ]
        if problems:
            raise ConfigError(f"{cls.display_name} config:\n{listing(problems)}")

    @classmethod
    def _wrong_heads(cls, values: Mapping[str, Any]) -> list[str]:
        if cls.divides is None:
            return []
        width, heads = cls.divides
        if values[width] % (2 * values[heads]) == 0:
            return []
        return [
            f"{width}={values[width]} does not divide into {values[heads]} heads of an even size."
        ]

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the settings that follow from others: the width of the feed-forward part.

        What is a yes or a no in `settings` may be None in a config, which is a no.
        """
        width = values.get("hidden_size")
        if values.get("intermediate_size", 0) is None and isinstance(width, int):
            values["intermediate_size"] = cls.feed_forward_width(width)
        answers = {k: bool(values[k]) for k, v in cls.settings.items() if isinstance(v, bool)}
        return {**values, **answers}

    @staticmethod
    def feed_forward_width(width: int) -> int:
        """Return the usual width of the feed-forward part for that of the model."""
        return 4 * width

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings of the content of a ``config.json``, defaults included."""
        config: dict[str, Any] = cls.config_class(**content).to_dict()
        return config

    config_class: ClassVar[Any]
    """transformers' class of the config."""

    def build(self) -> None:
        """Build transformers' own class, with packed blocks; keep its encoder and its head."""
        config = self.config_class(**self.config.to_dict())
        whole = self.whole_class(config)
        self.model = getattr(whole, self.root.removesuffix(".")) if self.root else whole
        self.lm_head = whole.lm_head if self.root else None
        # the names that all configs of transformers know these by
        self.single_dim, self.heads = config.hidden_size, config.num_attention_heads
        use_packed_blocks(self.blocks(), self.packed_class)

    def attention(self, packing: Packing) -> PackedAttention:
        """Return attention with the rotary frequencies, where the model has them."""
        rotary = getattr(self.model, self.rotary_name, None) if self.rotary_name else None
        frequency = None if rotary is None else rotary.inv_freq
        return PackedAttention(packing, self.heads, frequency=frequency)

    def embed(self, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:  # noqa: ARG002
        """Return the embeddings of the tokens."""
        embedding: nn.Embedding = self.get_submodule(self.embedding_prefix)  # type: ignore[assignment]  # by its place
        return embedding(tokens)

    def token_head(self) -> nn.Module | None:
        """Return the head of the language model."""
        return self.lm_head

    # --- weights -------------------------------------------------------------------------------

    def read_weights(self, path: str | Path, *, one_by_one: bool, mmap: bool) -> list[str]:
        """Read a Hugging Face folder, or a file of its weights."""
        path = as_path(path)
        if path.is_dir():
            compare_settings(path / "config.json", self.config.to_dict())
            compare_vocabulary(path, self.vocabulary())
        tensors = self.translate(read_tensors(path, apart=one_by_one or mmap))
        sizes = f"{len(self.blocks())} blocks, width {self.single_dim}"
        layout = Layout(
            model=f"{self.display_name} ({sizes})",
            canonical=self.canonical,
            optional=self.optional,
            pointless=lambda name: bool(re.match(self.pointless, self.canonical(name))),
            advice=self._advice,
        )
        blocks = {n: p for n, p in self.named_parameters() if n.startswith(self.block_prefix)}
        own = self.base_state_dict(whole=True)
        return take_tensors(own, tensors, path, layout, mapping=blocks if mmap else None)

    def write_stock(self, folder: Path) -> None:
        """Write the stock class that holds the encoder and its head."""
        weights = {
            (self.root if name.startswith("model.") else "") + name.removeprefix("model."): tensor
            for name, tensor in self.base_state_dict(whole=True).items()
        }
        config = self.config_class(**self.config.to_dict())
        write_folder(folder, config, weights, self.whole_class.__name__)
        if self.tokenizer_class is not None:
            write_tokenizer(folder, self.tokenizer_class, self.words)

    @property
    @abstractmethod
    def whole_class(self) -> Any:
        """Transformers' class of the encoder and its head; a family sets it as an attribute."""

    tokenizer_class: ClassVar[Any] = None
    """transformers' class of the tokenizer; None where it needs the published files."""
    words: ClassVar[Sequence[str]] = ()
    """Words of the vocabulary by their numbers, where the tokenizer does not have them itself."""

    def vocabulary(self) -> dict[str, int]:
        """Return the words as the files of a tokenizer write them, with their tokens."""
        return {word: i for i, word in enumerate(self.words)} or dict(self.alphabet.ids)

    def translate(self, tensors: Tensors) -> Tensors:
        """Return the weights of other layouts in that of transformers."""
        return tensors

    @classmethod
    def canonical(cls, name: str) -> str:
        """Return the same name for a weight in every layout: that of the stock encoder."""
        name = name.removeprefix("model.").removeprefix(cls.root)
        module, _, leaf = name.rpartition(".")
        plain = f"{module}.{_OLD_NORMS.get(leaf, leaf)}"
        for pattern, new in cls.renamed:
            plain = re.sub(pattern, new, plain)
        return plain

    def _advice(self, tensors: Mapping[str, torch.Tensor]) -> str:
        blocks = self.canonical(self.block_prefix + ".")
        numbers = {
            int(found.group(1))
            for name in tensors
            if (found := re.match(rf"{re.escape(blocks)}(\d+)\.", self.canonical(name)))
        }
        if not numbers:
            return f"It holds no {self.display_name}: expected weights under {blocks}."
        return f"The file has {max(numbers) + 1} blocks: take the config that belongs to it."


def family_of(content: Mapping[str, Any]) -> type[TransformersBackbone]:
    """Return the family of the content of a ``config.json``.

    Raises
    ------
    ConfigError
        If there is none; the text lists those that are known.
    """
    key = f"{content.get('model_type')} {content.get('vocab_size')}"
    if key not in FAMILIES:
        known = "; ".join(f"{k} ({name})" for k, name in FAMILIES.items())
        raise ConfigError(
            f"No family of models has the model_type and vocab_size {key!r}; known: {known}."
        )
    family: type[TransformersBackbone] = BACKBONES[FAMILIES[key]]
    return family


def _not_a_config(source: Any) -> str:
    names = ", ".join(dict.fromkeys(FAMILIES.values()))
    if isinstance(source, str | Path) and as_path(source).is_dir():
        return f"{source} has no config.json. Give config=... as well, or name the family: {names}."
    if isinstance(source, str | Path) and not as_path(source).exists():
        return f"{source} is neither a file nor a folder here. Give that of the model."
    return (
        f"{source!r} is no transformers config. Give one, or a Hugging Face folder; or name the "
        f"family: {names}."
    )


def _content(config: Any) -> dict[str, Any] | None:
    """Return the content of the config.json that an argument stands for; None if it is none."""
    if isinstance(config, str | Path):
        path = as_path(config)
        path = path / "config.json" if path.is_dir() else path
        return read_json(path) if path.suffix == ".json" and path.is_file() else None
    content = config.to_dict() if hasattr(config, "to_dict") else config
    return dict(content) if isinstance(content, Mapping) and "model_type" in content else None
