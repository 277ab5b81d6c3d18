"""A protein language model behind the `Backbone` interface, on packed sequences."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from molfun.backbones.base import Backbone, Features, Layer
from molfun.backbones.language import packed
from molfun.backbones.language.alphabet import Alphabet
from molfun.backbones.language.packing import PackedAttention, Packing
from molfun.backbones.own_heads import OwnHeads
from molfun.backbones.planning import PositionCosts
from molfun.backbones.splitting import PrefixSplitting
from molfun.errors import ConfigError, DataError
from molfun.nn import bf16, int8, mapped
from molfun.nn.process import seeded
from molfun.sample import CHAIN_SEPARATOR, Sample
from molfun.strict import check_choice
from molfun.trunk import ChainCheck, TrunkOutput

logger = logging.getLogger(__name__)

LongPolicy = Literal["full", "crop", "window"]
_SAID = {
    "crop": "%s has %d residues and is cut to the first %d, as are all longer ones.",
    "full": "%s has %d residues, more than the %d {model} was trained on; it runs as it is. "
    "Choose with long='crop' or long='window', or set max_length.",
}
"""Warning about the first sequence that is too long."""


class LanguageBackbone(Backbone, PrefixSplitting, OwnHeads, PositionCosts):
    """A transformer over the residues of a protein, as a package has it, on packed tokens.

    A model is a subclass with an alphabet, the places of its parts and the methods `architecture`,
    `build`, `read_weights` and `embed`; its blocks are made `PackedBlock`.

    Parameters
    ----------
    config
        Architecture, as the subclass takes it: the name of a preset, a mapping.
    weights
        File or folder of weights; None gives a random initialisation.
    seed
        Seed of the random initialisation.
    long
        Treatment of sequences with more than `context` residues. ``"full"`` runs them whole and
        warns (attention grows with the square of the length); ``"crop"`` keeps the first `context`
        residues; ``"window"`` runs overlapping windows and takes each residue from the window whose
        ends are farthest from it.
    context
        Largest number of residues that the model sees at once; None is that of its training.
    checkpointing
        Whether to recompute the activations of each block in the backward pass instead of keeping
        them: a fraction of the memory for a third more time.
    layer
        Number of the block whose output is the representation; None is the last one. The blocks
        after it are left out, and the model predicts no residues.
    base
        ``"int8"`` reads `weights` into int8, tensor by tensor (`molfun.nn.int8`).
    mmap
        Whether the weights of the blocks stay in their file, mapped into memory
        (`molfun.nn.mapped`): safetensors in float32 in the file itself, which must not change
        meanwhile, others and random ones in temporary files.
    """

    alphabet: ClassVar[Alphabet]
    """Letters and their tokens."""
    trained_length: ClassVar[int]
    """Residues of the longest sequences that the model was trained on."""
    most_positions: int | None = None
    """Largest number of tokens that has positions; None where positions know no end."""
    block_class: ClassVar[type[nn.Module]]
    """Class of the blocks of the stock model."""
    embedding_prefix: ClassVar[str]
    """Module path of the input embeddings."""
    norm_prefix: ClassVar[str]
    """Module path of the norm after the last block."""

    model: Any
    """The stock module, as its package builds it; `build` sets it."""
    heads: int
    """Attention heads of a block; `build` sets it."""
    chains_read: ChainCheck | None = None
    """Where a head reads chains, refuses a sample by its name and its number of chains."""

    length_power = 1.0
    inputs = ("sequences", "structures")
    kernels = "fast"
    has_int8 = True

    def __init__(
        self,
        config: Any,
        *,
        weights: str | Path | None = None,
        seed: int = 0,
        long: LongPolicy = "full",
        context: int | None = None,
        checkpointing: bool = False,
        layer: int | None = None,
        base: int8.Base = "float32",
        mmap: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(long, context, base, mmap=mmap)
        self.config = self.architecture(config)
        self.long, self.checkpointing = long, checkpointing
        self.context = self.trained_length if context is None else context
        # without a file the random weights are those to quantise, which `build_backbone` does
        building: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if base == "int8" and weights is not None:
            building = int8.built_in_int8(self.block_class)
        elif mmap:
            building = mapped.built_mapped(self.block_class, random=weights is None)
        with seeded(seed), building:
            self.build()
        self._has_contacts = False
        if weights is not None:
            random = self.read_weights(weights, one_by_one=base == "int8", mmap=mmap)
            known = hasattr(self.model, "contact_head")
            self._has_contacts = known and not any("contact_head" in name for name in random)
            # what the file lacks keeps its values from the seed
            self.unread = frozenset(random)
        self.layer, self.is_cut = layer, False
        if layer is not None:
            self._cut_after(layer)
        # one channel per attention map: the contact regression of ESM reads those of all layers
        self.pair_dim = len(self.blocks()) * self.heads
        self._said_long = False

    def _cut_after(self, layer: int) -> None:
        """Leave out what comes after a block, the norm of the last block too."""
        n = len(self.blocks())
        if not 1 <= layer <= n:
            raise ConfigError(f"layer must be from 1 to {n} for {n} blocks, got {layer}.")
        if layer == n:
            return
        self.is_cut = True
        blocks: Any = self.get_submodule(self.block_prefix)
        del blocks[layer:]
        self.set_submodule(self.norm_prefix, nn.Identity())
        for owner, name in (
            (self.model, "lm_head"),
            (self.model, "contact_head"),
            (self, "lm_head"),
        ):
            if isinstance(getattr(owner, name, None), nn.Module):
                setattr(owner, name, None)
        self._has_contacts = False
        self.unread = frozenset(name for name in self.unread if name in self.state_dict())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = _with_those_of_base(cls)  # type: ignore[attr-defined]  # for inspect

    # --- what a model says of itself -------------------------------------------------------------

    @classmethod
    @abstractmethod
    def architecture(cls, config: Any) -> Any:
        """Turn the argument ``config`` into what `build` needs.

        Raises
        ------
        ConfigError
            If a name or a setting is unknown.
        """

    @abstractmethod
    def build(self) -> None:
        """Build `model` from ``self.config``, with packed blocks; set `single_dim`, `heads`."""

    @abstractmethod
    def read_weights(self, path: str | Path, *, one_by_one: bool, mmap: bool) -> list[str]:
        """Read a weight file; return the names of weights that it lacks, which stay random."""

    @abstractmethod
    def embed(self, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Return the input of the first block: (tokens, channels)."""

    def attention(self, packing: Packing) -> PackedAttention:
        """Return how the blocks attend: by the products of queries and keys alone."""
        return PackedAttention(packing, self.heads)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """Return the representation after the last block: its norm."""
        normed: torch.Tensor = self.get_submodule(self.norm_prefix)(x)
        return normed

    def write_hugging_face(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder, which transformers loads.

        Raises
        ------
        ConfigError
            If transformers has no class for the model.
        """
        if self.is_cut:
            raise ConfigError(
                f"layer={self.layer} leaves out the last blocks of {self.display_name}, and "
                f"transformers has no such model. Use the checkpoint folder with molfun predict."
            )
        self.write_stock(folder)

    @abstractmethod
    def write_stock(self, folder: Path) -> None:
        """Write transformers' own model with the base weights, and its tokenizer."""

    # --- input ---------------------------------------------------------------------------------

    def featurize(self, sample: Sample) -> Features:
        """Turn one sequence into tokens, in one window or several.

        Raises
        ------
        DataError
            If the sample has no sequence, or one with other letters.
        """
        residues = self._encode(sample)
        n = len(residues)
        spans = self._spans(n)
        before, after = (np.array(tokens, np.int64) for tokens in self.around())
        windows = [np.concatenate([before, residues[a:b], after]) for a, b in spans]
        starts = np.cumsum([0, *(len(w) for w in windows)])
        place = np.arange(n)
        # distance of each residue to the nearer end of each window, negative outside of it: the
        # deepest window shows the most context on both sides
        depth = [np.minimum(place - a, b - 1 - place) for a, b in spans]
        deepest = np.argmax(depth, axis=0)
        offsets = np.array([starts[i] + len(before) - a for i, (a, _) in enumerate(spans)])
        return {
            "tokens": torch.from_numpy(np.concatenate(windows)),
            "windows": torch.tensor([len(w) for w in windows]),
            "residues": torch.from_numpy(place + offsets[deepest]),
            "shape": torch.tensor([[n, len(windows)]]),
            # the token of the beginning, where a model has one
            **({"begins": torch.from_numpy(starts[:-1])} if len(before) else {}),
        }

    def around(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens in front of every sequence, and behind it."""
        return self.alphabet.before, self.alphabet.after

    def positions(self, sample: Sample) -> int:
        """Return the number of tokens, of all chains."""
        return sum(len(self.featurize(chain)["tokens"]) for chain in sample.by_chain())

    def block_bytes(self, sample: Sample) -> int:
        """Return the bytes that one block keeps: its input alone where blocks are recomputed."""
        if self.checkpointing:
            return 4 * self.positions(sample) * self.single_dim
        return super().block_bytes(sample)

    def _encode(self, sample: Sample) -> np.ndarray:
        residues = self.encode(sample)
        if sample.max_length is not None:
            residues = residues[: sample.max_length]
        if len(residues) > self.context and self.long in _SAID and not self._said_long:
            self._said_long = True
            said = _SAID[self.long].format(model=self.display_name)
            logger.warning(said, sample.id, len(residues), self.context)
        return residues[: self.context] if self.long == "crop" else residues

    def _spans(self, n: int) -> list[tuple[int, int]]:
        """Windows of at most `context` residues that overlap by half."""
        if n <= self.context or self.long == "full":
            return [(0, n)]
        # by half a window: away from the ends, each residue is in the middle half of some window
        step = max(1, self.context // 2)
        last = n - self.context
        starts = [*range(0, last, step), last]
        return [(a, a + self.context) for a in starts]

    def check(self, sample: Sample) -> None:
        """Refuse what `featurize` could not take.

        Raises
        ------
        DataError
            Naming the sample and the letter.
        """
        chains = [sample]
        if self.chains_read is not None:
            chains = sample.by_chain()
            self.chains_read(sample.shown, len(chains))
        for chain in chains:
            self._check_one(chain)

    def _check_one(self, sample: Sample) -> None:
        n = len(self.encode(sample))
        n = n if sample.max_length is None else min(n, sample.max_length)
        most = self._most_residues
        if most is not None and n > most and self.long == "full":
            raise DataError(
                f"{sample.shown} has {n} residues, and {self.display_name} has positions for "
                f"{most}: use long='crop' or long='window'."
            )

    @property
    def _most_residues(self) -> int | None:
        if self.most_positions is None:
            return None
        return self.most_positions - sum(map(len, self.around()))

    def encode(self, sample: Sample) -> np.ndarray:
        """Return the tokens of the residues of a sample.

        Raises
        ------
        DataError
            Naming the sample and the letter.
        """
        return self.alphabet.encode(self.sequence_of(sample), name=sample.shown)

    def sequence_of(self, sample: Sample) -> str:
        """Return the sequence of a sample, or of its structure.

        Raises
        ------
        DataError
            If it has neither.
        """
        if sample.sequence is not None:
            if CHAIN_SEPARATOR in sample.sequence:
                advice = "give single sequences"
                if self.chains_read is None:
                    advice += ", or a head that reads chains (pair_mlp, cross_attention)"
                raise DataError(
                    f"{sample.shown} has {len(sample.chains)} chains, and what reads it takes one: "
                    f"{advice}."
                )
            return sample.sequence
        if sample.protein is not None:
            return sample.protein.sequence
        raise DataError(
            f"{sample.id} has neither a sequence nor a structure, and {self.display_name} needs "
            f"one."
        )

    def doubtful(self, dataset: Any) -> Sequence[int] | None:
        """Return the places of sequences with a letter that is no amino acid."""
        if getattr(dataset, "kind", None) != "sequences":
            return None
        if self.chains_read is not None or (
            self.most_positions is not None and self.long == "full"
        ):
            return None
        if hasattr(dataset, "has_only") and dataset.has_only(self.alphabet.letters):
            return []
        # letters alone make a sequence; that of several chains has their separator
        return self.alphabet.doubtful(map(CHAIN_SEPARATOR.join, dataset.sequences()))

    def serve(self, heads: Sequence[Any]) -> None:
        """Take samples of several chains where heads read these."""
        super().serve(heads)
        reading = [part.head for part in heads if part.head.reads_chains]
        self.chains_read = reading[0].chains_read if reading else None

    def collate(self, features: Sequence[Features]) -> Features:
        """Concatenate the tokens of all samples; nothing is padded."""
        return packed.join(features)

    def pretrained_head(self, name: str) -> dict[str, torch.Tensor] | None:
        """Return the weights of the contact regression that is published with the model."""
        if name != "contact" or not self._has_contacts:
            return None
        return dict(self.model.contact_head.state_dict())

    def mark_trained(self) -> None:
        """Treat all weights as trained, except a contact regression that was never read."""
        names = self.state_dict() if not self._has_contacts else {}
        self.unread = frozenset(n for n in names if n.startswith("model.contact_head."))

    def featurize_key(self) -> str:
        """Return the settings that decide tokens and windows."""
        return json.dumps([self.name, self.long, self.context])

    # --- forward -------------------------------------------------------------------------------

    def forward(
        self, batch: Features, *, outputs: Sequence[str] = ("single",), layer: int = -1
    ) -> TrunkOutput:
        """Run the transformer over packed or padded tokens.

        Parameters
        ----------
        batch
            Result of `collate`, or ``{"tokens": (batch, length)}``: padded, with or without the
            tokens for beginning and end, as from fair-esm's batch converter.
        outputs
            Names among ``single``, ``mean``, ``cls`` and ``pair`` (attention of all layers and
            heads, for contacts).
        layer
            Layer whose representation is returned: -1 for the last (normalised, as in fair-esm), 0
            for the embeddings, k for the output of block k.

        Returns
        -------
        TrunkOutput
            Residues only: the tokens for beginning and end are left out of all but ``cls``.
        """
        if "windows" not in batch:
            batch = packed.unpad(batch["tokens"], self.alphabet)
        stop = self._layer(layer)
        packing = Packing(tuple(batch["windows"].tolist()))
        maps: list[list[torch.Tensor]] | None = [] if "pair" in outputs else None
        x = self.embed(batch["tokens"], packing)
        x = self._blocks(x, self.attention(packing), range(stop), maps)
        return self._output(x, batch, outputs, maps, last=stop == len(self.blocks()))

    def layer_means(self, batch: Features) -> torch.Tensor:
        """Return the mean over residues after each block: (blocks, samples, channels).

        The last one is that of `forward`, after the norm.
        """
        packing = Packing(tuple(batch["windows"].tolist()))
        x, attention = self.embed(batch["tokens"], packing), self.attention(packing)
        lengths, found = batch["shape"][:, 0].tolist(), []
        for i, block in enumerate(self.blocks(), start=1):
            x = self._run(block, x, attention)
            shown = self.finish(x) if i == len(self.blocks()) else x
            found.append(packed.means(shown[batch["residues"]].split(lengths)))
        return torch.stack(found)

    @property
    def mask_token(self) -> int:
        """Token of a masked residue."""
        mask = self.alphabet.mask
        if mask is None:
            raise ConfigError(f"{self.display_name} has no token for a hidden residue.")
        return mask

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Tokens of the 20 amino acids."""
        return torch.from_numpy(self.alphabet.residues)

    def token_logits(self, batch: Features, selected: torch.Tensor) -> torch.Tensor:
        """Return the language model's logits at the `selected` tokens: (selected, vocabulary)."""
        head = self.needs_token_head()
        packing = Packing(tuple(batch["windows"].tolist()))
        x = self.embed(batch["tokens"], packing)
        attention, last = self.attention(packing), len(self.blocks()) - 1
        x = self._blocks(x, attention, range(last))
        # the last block and the head run at the selected tokens alone, a few of all
        x = self._run(self.blocks()[last], x, attention, selected)
        x = self.finish(x)
        # in float32 where the blocks keep weights in bfloat16: it is a small part of the work, and
        # its rounding would be half of the error
        with torch.autocast("cpu", enabled=False) if bf16.current() else contextlib.nullcontext():
            logits: torch.Tensor = head(x)
        return logits

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens that stand for residues that the model has to guess."""
        return torch.full_like(tokens, self.mask_token)

    def amino_acid_log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logarithms of the probabilities of the 20 amino acids: (tokens, 20).

        In the order of `molfun.backbones.language.alphabet.AMINO_ACIDS`; the rest of the
        probability is that of other tokens.
        """
        return torch.log_softmax(logits.float(), dim=-1)[:, self.residue_tokens.to(logits.device)]

    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:
        """Return True for every block, unless the attention maps of all blocks are asked for."""
        return block > 0 and "pair" not in outputs

    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run embeddings and the blocks before `block`; returns ``hidden`` (tokens, channels)."""
        packing = Packing(tuple(batch["windows"].tolist()))
        x = self.embed(batch["tokens"], packing)
        hidden = self._blocks(x, self.attention(packing), range(block))
        return {**{k: v for k, v in batch.items() if k != "tokens"}, "hidden": hidden}

    def join_states(self, states: Sequence[Features]) -> Features:
        """Put the tokens of all samples into one dimension, as `collate` does."""
        return packed.join(states)

    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Run the blocks from `block` on."""
        packing = Packing(tuple(state["windows"].tolist()))
        which = range(block, len(self.blocks()))
        x = self._blocks(state["hidden"], self.attention(packing), which)
        return self._output(x, state, outputs, None, last=True)

    def _layer(self, layer: int) -> int:
        n = len(self.blocks())
        if not -n - 1 <= layer <= n:
            raise ConfigError(f"layer must be from {-n - 1} to {n} for {n} blocks, got {layer}.")
        return layer % (n + 1)

    def _blocks(
        self,
        x: torch.Tensor,
        attention: PackedAttention,
        which: range,
        maps: list[list[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        blocks: Sequence[Any] = self.blocks()
        for i in which:
            if maps is not None:
                # queries and keys are computed a second time here: the pass keeps no maps
                maps.append(attention.maps(*blocks[i].heads_of(x, attention)[:2]))
            x = self._run(blocks[i], x, attention)
        return x

    def _run(self, block: nn.Module, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, *arguments, use_reentrant=False)
        else:
            x = block(x, *arguments)
        return x

    def _output(
        self,
        x: torch.Tensor,
        batch: Features,
        outputs: Sequence[str],
        maps: list[list[torch.Tensor]] | None,
        *,
        last: bool,
    ) -> TrunkOutput:
        if last:
            x = self.finish(x)
        lengths, n_windows = (column.tolist() for column in batch["shape"].unbind(1))
        residues = x[batch["residues"]].split(lengths)
        ones = [torch.ones(n, device=x.device) for n in lengths]
        found = {"mask": nn.utils.rnn.pad_sequence(ones, batch_first=True)}
        if "single" in outputs:
            found["single"] = nn.utils.rnn.pad_sequence(residues, batch_first=True)
        if "mean" in outputs:
            found["mean"] = packed.means(residues)
        if "cls" in outputs:
            if "begins" not in batch:
                raise DataError(
                    "'cls' needs a token in front of each sequence, and these have none."
                )
            found["cls"] = packed.means(x[batch["begins"]].split(n_windows))
        if maps is not None:
            around = tuple(map(len, self.around()))
            found["pair"] = packed.pair_of(maps, batch["windows"].tolist(), lengths, around)
        return TrunkOutput.from_tensors(found)

    def needs_token_head(self) -> nn.Module:
        """Return the head that predicts residues, or say why there is none."""
        head = self.token_head()
        if head is not None:
            return head
        if self.is_cut:
            raise ConfigError(
                f"layer={self.layer} leaves out the last blocks of {self.display_name}, so that it "
                f"predicts no residues."
            )
        raise ConfigError(f"{self.display_name} is an encoder alone: it predicts no residues.")

    def token_head(self) -> nn.Module | None:
        """Return the head that predicts residues; None where there is none."""
        return None

    # --- parts ---------------------------------------------------------------------------------

    def blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks, first to last."""
        return list(self.get_submodule(self.block_prefix).children())

    def layer_of(self, parameter: str) -> Layer:
        """Find the layer of a parameter.

        Examples
        --------
        >>> from molfun.backbones.esm2 import ESM2Backbone
        >>> ESM2Backbone(config="esm2_tiny").layer_of("model.layers.1.fc1.weight")
        Layer(kind='block', index=1)
        """
        if parameter.startswith(self.block_prefix + "."):
            return Layer("block", int(parameter[len(self.block_prefix) + 1 :].split(".")[0]))
        if parameter.startswith(self.embedding_prefix):
            return Layer("embedder")
        # the last norm belongs to the last block: it trains, and is cached, with it
        if parameter.startswith(self.norm_prefix):
            return Layer("block", len(self.blocks()) - 1)
        return Layer("output")

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, the treatment of long sequences, and the layer, if it is not the last."""
        found = {"architecture": self.config.to_dict(), "long": self.long, "context": self.context}
        return found if self.layer is None else {**found, "layer": self.layer}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""
        arguments = dict(config)
        return {"config": arguments.pop("architecture"), **arguments}


def _with_those_of_base(cls: type) -> inspect.Signature:
    """Return the arguments of a class, with those of its base in place of ``**settings``.

    Settings are checked by these names, so that a subclass lists its own alone.
    """
    own = inspect.signature(cls.__init__)  # type: ignore[misc]  # of this class, not of an instance
    named = {n: p for n, p in own.parameters.items() if n != "self" and p.kind is not p.VAR_KEYWORD}
    if len(named) + 1 < len(own.parameters):
        base = inspect.signature(cls.__mro__[1].__init__).parameters  # type: ignore[misc]  # as above
        above = getattr(cls.__mro__[1], "__signature__", None)
        others = base if above is None else above.parameters
        named = {**named, **{n: p for n, p in others.items() if n not in (*named, "self")}}
    ordered = sorted(named.values(), key=lambda p: p.kind)
    return own.replace(parameters=ordered)


def _check_settings(long: str, context: int | None, base: str, *, mmap: bool) -> None:
    check_choice("long policy", long, get_args(LongPolicy))
    if context is not None and context < 1:
        raise ConfigError(f"context must be at least 1, got {context}.")
    if mmap and base == "int8":
        raise ConfigError("mmap keeps weights as floats in a file, and base is 'int8': drop one.")
