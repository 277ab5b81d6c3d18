"""ESM-2 of the fair-esm package behind the `Backbone` interface, on packed sequences."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from molfun.backbones.base import Backbone, Features, Layer
from molfun.backbones.esm2 import packed, presets, tokens
from molfun.backbones.esm2.packed import Packing, Rotation
from molfun.backbones.esm2.weights import load_weights
from molfun.backbones.own_heads import OwnHeads
from molfun.backbones.planning import PositionCosts
from molfun.backbones.splitting import PrefixSplitting
from molfun.errors import ConfigError, DataError
from molfun.nn import int8
from molfun.nn.process import seeded
from molfun.sample import Sample
from molfun.strict import check_choice
from molfun.trunk import TrunkOutput, padded_cat

logger = logging.getLogger(__name__)

TRAINED_LENGTH = 1022
"""Residues of the longest sequences ESM-2 was trained on (1,024 tokens)."""
_INDICES = ("residues", "begins", "selected")
"""Features that hold indices into the token dimension, which move when batches are joined."""
LongPolicy = Literal["full", "crop", "window"]
_SAID = {
    "crop": "%s has %d residues and is cut to the first %d, as are all longer ones.",
    "full": "%s has %d residues, more than the %d ESM-2 was trained on; it runs as it is. "
    "Choose with long='crop' or long='window', or set max_length.",
}
"""Warning about the first sequence that is too long."""


class ESM2Backbone(Backbone, PrefixSplitting, OwnHeads, PositionCosts):
    """ESM-2, a protein language model, as published in the ``fair-esm`` package.

    Parameters
    ----------
    config
        Preset name (``"esm2_t6_8M_UR50D"`` ... ``"esm2_t48_15B_UR50D"``, ``"esm2_tiny"``), or a
        mapping with ``num_layers``, ``embed_dim`` and ``attention_heads``.
    weights
        File of weights, see `molfun.backbones.esm2.weights.load_weights`; None gives a random
        initialisation.
    seed
        Seed of the random initialisation.
    long
        Treatment of sequences with more than `context` residues. ``"full"`` runs them whole and
        warns (rotary positions take any length; attention grows with its square); ``"crop"`` keeps
        the first `context` residues; ``"window"`` runs overlapping windows and takes each residue
        from the window whose ends are farthest from it.
    context
        Largest number of residues that the model sees at once.
    checkpointing
        Whether to recompute the activations of each block in the backward pass instead of keeping
        them: a fraction of the memory for a third more time.
    base
        ``"int8"`` reads `weights` into int8, tensor by tensor (`molfun.nn.int8`).

    References
    ----------
    Lin et al. 2023, Science 379, 1123.

    Examples
    --------
    >>> from molfun.backbones.esm2 import ESM2Backbone
    >>> backbone = ESM2Backbone(config="esm2_tiny")
    >>> backbone.single_dim, len(backbone.blocks())
    (32, 2)
    """

    name = "esm2"
    display_name = "ESM-2"
    weights_licence = "the MIT licence (ESM-2, Lin et al. 2023)"
    block_prefix = "model.layers"
    lora_targets = ("q_proj", "v_proj")
    length_power = 1.0
    inputs = ("sequences", "structures")
    kernels = "fast"
    has_int8 = True

    def __init__(
        self,
        config: str | Mapping[str, Any] = "esm2_t6_8M_UR50D",
        *,
        weights: str | Path | None = None,
        seed: int = 0,
        long: LongPolicy = "full",
        context: int = TRAINED_LENGTH,
        checkpointing: bool = False,
        base: int8.Base = "float32",
    ) -> None:
        from esm.model.esm2 import ESM2
        from esm.modules import TransformerLayer

        super().__init__()
        check_choice("long policy", long, get_args(LongPolicy))
        if context < 1:
            raise ConfigError(f"context must be at least 1, got {context}.")
        self.config = presets.resolve(config)
        self.long, self.context, self.checkpointing = long, context, checkpointing
        # without a file the random weights are those to quantise, which `build_backbone` does
        small = base == "int8" and weights is not None
        with (
            seeded(seed),
            int8.built_in_int8(TransformerLayer) if small else contextlib.nullcontext(),
        ):
            self.model = ESM2(**self.config.to_dict(), alphabet="ESM-1b")
        packed.use_packed_layers(self.model)
        self._has_contacts = False
        if weights is not None:
            random = load_weights(self.model, weights, self.config, one_by_one=small)
            self._has_contacts = not any(name.startswith("contact_head") for name in random)
            # what the file lacks keeps its values from the seed
            self.unread = frozenset(f"model.{name}" for name in random)
        self.single_dim = self.config.embed_dim
        # one channel per attention map: fair-esm's contact regression reads those of all layers
        self.pair_dim = self.config.num_layers * self.config.attention_heads
        self._said_long = False

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
        begin, end = tokens.special("<cls>"), tokens.special("<eos>")
        windows = [np.concatenate([[begin], residues[a:b], [end]]) for a, b in spans]
        starts = np.cumsum([0, *(len(w) for w in windows)])
        place = np.arange(n)
        # distance of each residue to the nearer end of each window, negative outside of it: the
        # deepest window shows the most context on both sides
        depth = [np.minimum(place - a, b - 1 - place) for a, b in spans]
        deepest = np.argmax(depth, axis=0)
        offsets = np.array([starts[i] + 1 - a for i, (a, _) in enumerate(spans)])
        return {
            "tokens": torch.from_numpy(np.concatenate(windows)),
            "windows": torch.tensor([len(w) for w in windows]),
            "residues": torch.from_numpy(place + offsets[deepest]),
            "begins": torch.from_numpy(starts[:-1]),
            "shape": torch.tensor([[n, len(windows)]]),
        }

    def positions(self, sample: Sample) -> int:
        """Return the number of tokens."""
        return len(self.featurize(sample)["tokens"])

    def block_bytes(self, sample: Sample) -> int:
        """Return the bytes that one block keeps: its input alone where blocks are recomputed."""
        if self.checkpointing:
            return 4 * self.positions(sample) * self.single_dim
        return super().block_bytes(sample)

    def _encode(self, sample: Sample) -> np.ndarray:
        residues = tokens.encode(_sequence_of(sample), name=sample.shown)
        if sample.max_length is not None:
            residues = residues[: sample.max_length]
        if len(residues) > self.context and self.long in _SAID and not self._said_long:
            self._said_long = True
            logger.warning(_SAID[self.long], sample.id, len(residues), self.context)
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
        tokens.encode(_sequence_of(sample), name=sample.shown)

    def doubtful(self, dataset: Any) -> Sequence[int] | None:
        """Return the places of sequences with a letter that is no amino acid."""
        if getattr(dataset, "kind", None) != "sequences":
            return None
        if hasattr(dataset, "has_only") and dataset.has_only(tokens.LETTERS_OF_BOTH_CASES):
            return []
        return tokens.doubtful(sequence for (sequence,) in dataset.sequences())

    def collate(self, features: Sequence[Features]) -> Features:
        """Concatenate the tokens of all samples; nothing is padded."""
        return _join(features)

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
            batch = unpad(batch["tokens"], self.model.padding_idx)
        stop = self._layer(layer)
        packing = Packing(tuple(batch["windows"].tolist()))
        maps: list[list[torch.Tensor]] | None = [] if "pair" in outputs else None
        x = packed.embed(self.model, batch["tokens"], packing)
        x = self._blocks(x, packing, range(stop), maps)
        return self._output(x, batch, outputs, maps, last=stop == self.config.num_layers)

    @property
    def mask_token(self) -> int:
        """Token of a masked residue."""
        return tokens.special("<mask>")

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Tokens of the 20 amino acids."""
        return torch.from_numpy(tokens.encode("ACDEFGHIKLMNPQRSTVWY"))

    def token_logits(self, batch: Features, selected: torch.Tensor) -> torch.Tensor:
        """Return the language model's logits at the `selected` tokens: (selected, 33)."""
        packing = Packing(tuple(batch["windows"].tolist()))
        x = packed.embed(self.model, batch["tokens"], packing)
        x = self._blocks(x, packing, range(self.config.num_layers))
        # the head runs at the selected tokens alone, a few of all
        logits: torch.Tensor = self.model.lm_head(self.model.emb_layer_norm_after(x[selected]))
        return logits

    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:
        """Return True for every block, unless the attention maps of all blocks are asked for."""
        return block > 0 and "pair" not in outputs

    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run embeddings and the blocks before `block`; returns ``hidden`` (tokens, channels)."""
        packing = Packing(tuple(batch["windows"].tolist()))
        x = packed.embed(self.model, batch["tokens"], packing)
        hidden = self._blocks(x, packing, range(block))
        return {**{k: v for k, v in batch.items() if k != "tokens"}, "hidden": hidden}

    def join_states(self, states: Sequence[Features]) -> Features:
        """Put the tokens of all samples into one dimension, as `collate` does."""
        return _join(states)

    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Run the blocks from `block` on."""
        packing = Packing(tuple(state["windows"].tolist()))
        x = self._blocks(state["hidden"], packing, range(block, self.config.num_layers))
        return self._output(x, state, outputs, None, last=True)

    def _layer(self, layer: int) -> int:
        n = self.config.num_layers
        if not -n - 1 <= layer <= n:
            raise ConfigError(f"layer must be from {-n - 1} to {n} for {n} blocks, got {layer}.")
        return layer % (n + 1)

    def _blocks(
        self,
        x: torch.Tensor,
        packing: Packing,
        which: range,
        maps: list[list[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        rotation = Rotation(packing, self.config.attention_heads)
        for i in which:
            block = self.model.layers[i]
            if maps is not None:
                maps.append(packed.attention_maps(block, x, packing, rotation))
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, packing, rotation, use_reentrant=False)
            else:
                x = block(x, packing, rotation)
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
            x = self.model.emb_layer_norm_after(x)
        lengths, n_windows = (column.tolist() for column in batch["shape"].unbind(1))
        residues = x[batch["residues"]].split(lengths)
        ones = [torch.ones(n, device=x.device) for n in lengths]
        found = {"mask": nn.utils.rnn.pad_sequence(ones, batch_first=True)}
        if "single" in outputs:
            found["single"] = nn.utils.rnn.pad_sequence(residues, batch_first=True)
        if "mean" in outputs:
            found["mean"] = _means(residues)
        if "cls" in outputs:
            if "begins" not in batch:
                raise DataError("'cls' needs tokens that begin with <cls>; these have none.")
            found["cls"] = _means(x[batch["begins"]].split(n_windows))
        if maps is not None:
            found["pair"] = _pair(maps, batch["windows"].tolist(), lengths)
        return TrunkOutput.from_tensors(found)

    # --- parts ---------------------------------------------------------------------------------

    def blocks(self) -> Sequence[nn.Module]:
        """Transformer layers, first to last."""
        return list(self.model.layers)

    def layer_of(self, parameter: str) -> Layer:
        """Find the layer of a parameter.

        Examples
        --------
        >>> ESM2Backbone(config="esm2_tiny").layer_of("model.layers.1.fc1.weight")
        Layer(kind='block', index=1)
        """
        parts = parameter.removeprefix("model.").split(".")
        if parts[0] == "layers":
            return Layer("block", int(parts[1]))
        if parts[0] == "embed_tokens":
            return Layer("embedder")
        # the last norm belongs to the last block: it trains, and is cached, with it
        if parts[0] == "emb_layer_norm_after":
            return Layer("block", self.config.num_layers - 1)
        return Layer("output")

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, and the treatment of long sequences."""
        return {"architecture": self.config.to_dict(), "long": self.long, "context": self.context}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""
        arguments = dict(config)
        return {"config": arguments.pop("architecture"), **arguments}


def _sequence_of(sample: Sample) -> str:
    if sample.sequence is not None:
        return sample.sequence
    if sample.protein is not None:
        return sample.protein.sequence
    raise DataError(f"{sample.id} has neither a sequence nor a structure, and ESM-2 needs one.")


def _join(features: Sequence[Features]) -> Features:
    """Concatenate along the token dimension, and shift the indices into it."""
    first = features[0]
    if len(features) == 1:
        return dict(first)
    counts = [int(f["windows"].sum()) for f in features]
    offsets = np.cumsum([0, *counts[:-1]]).tolist()
    joined = {}
    for key in first:
        parts = [f[key] for f in features]
        if key in _INDICES:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
        joined[key] = torch.cat(parts)
    return joined


def unpad(padded: torch.Tensor, padding: int) -> Features:
    """Turn tokens (batch, length), padded at either end, into packed features.

    The tokens for beginning and end are optional; the output ``cls`` needs them.

    Raises
    ------
    DataError
        If a row holds no residue.
    """
    # at either end: Hugging Face's tokenizer can pad on the left
    kept = padded != padding
    lengths = kept.sum(1)
    packed_tokens = padded[kept]
    special = torch.tensor([tokens.special("<cls>"), tokens.special("<eos>")]).to(padded)
    is_residue = ~torch.isin(packed_tokens, special)
    sequence = torch.repeat_interleave(torch.arange(len(padded), device=padded.device), lengths)
    n_residues = torch.bincount(sequence[is_residue], minlength=len(padded))
    empty = (n_residues == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"The token batch has no residue in row {empty[0]}.")
    begins = lengths.cumsum(0) - lengths
    features = {
        "tokens": packed_tokens,
        "windows": lengths,
        "residues": is_residue.nonzero().flatten(),
        "shape": torch.stack([n_residues, torch.ones_like(lengths)], dim=1),
    }
    if bool((packed_tokens[begins] == special[0]).all()):
        features["begins"] = begins
    return features


def _means(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of each part: (parts, channels)."""
    return torch.stack([part.mean(0) for part in parts])


def _pair(
    maps: list[list[torch.Tensor]], windows: Sequence[int], lengths: Sequence[int]
) -> torch.Tensor:
    """Return the attention between residues: (batch, length, length, layers * heads)."""
    # one window per sequence, each with its two special tokens
    if windows != [n + 2 for n in lengths]:
        raise DataError(
            "Contacts need each sequence in one piece between its tokens for beginning and "
            "end: use long='full' or long='crop' instead of long='window'."
        )
    attention = [torch.cat(of_one)[:, 1:-1, 1:-1] for of_one in zip(*maps, strict=True)]
    return padded_cat([one.permute(1, 2, 0).unsqueeze(0) for one in attention])
