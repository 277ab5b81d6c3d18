"""Compare ESM-2 in Molfun with fair-esm and transformers + peft, on equal weights and sequences.

    python benchmarks/esm2_vs_peers.py --size 8M --sequences 64 --rounds 3

This needs ``pip install transformers``. Each variant has a process of its own, on one thread by
default and with the allocator its users would have (`molfun.nn.allocator` for Molfun, the system's
for the peers). They take turns within every round, one at a time, and the table shows medians over
rounds of CPU seconds (with one thread, this is time); slow rows have fewer rounds. Sequences are
random with log-normal lengths (median 250, 50 to 1,000); residues are counted without padding.
Every variant starts from the same weights and sees the same labels; the losses over the first pass,
before any step, are compared. Memory is the peak of a process over that with the model loaded, in
MB.

Variants of transformers: "default" has batches of 8 in random order, "sorted" batches of similar
length, so that little is padded. Molfun gets the random batches.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant
from torch import nn
from torch.nn import functional

from molfun import (
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)
from molfun.backbones.esm2.weights import canonical_name
from molfun.nn import bf16, kernels
from molfun.sample import SampleBatch

NAMES = {
    "tiny": "esm2_tiny",
    "8M": "esm2_t6_8M_UR50D",
    "35M": "esm2_t12_35M_UR50D",
    "150M": "esm2_t30_150M_UR50D",
    "650M": "esm2_t33_650M_UR50D",
}
RANK, BATCH, EPOCHS = 8, 8, 20
ENOUGH = 20.0
"""Seconds after which a row is measured no more, so that the slow ones do not take minutes."""
TITLES = {
    "inference": "Inference",
    "lora": f"LoRA (rank {RANK}) step",
    "full": "Full step",
    "head": f"Head-only, {EPOCHS} epochs",
    "partial": f"Partial (last 2 blocks), {EPOCHS} epochs",
}
LONG_RUNS = ("head", "partial")
"""Modes that train for several epochs."""
Batches = list[list[int]]


def sequences(n: int, seed: int) -> list[str]:
    """Draw random proteins with log-normal lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(math.log(250), 0.6, n)), 50, 1000).astype(int)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), k)) for k in lengths]


class Peer(nn.Module):
    """Base of all variants: mean over the residues, one linear layer, mean squared error."""

    def __init__(self, source: MolfunStructureModel) -> None:
        super().__init__()
        head: Any = source.head
        self.output: nn.Linear = copy.deepcopy(head.layers[-1])
        self.device: torch.device = source.device

    def features(self, texts: Sequence[str]) -> Any:
        """Return the input of `forward` for some sequences: the tokens, padded."""
        return self.converter([("", t) for t in texts])[2].to(self.device)

    def inner(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mask of residues: neither start, end nor padding."""
        return (tokens != 0) & (tokens != 1) & (tokens != 2)

    def loss(self, representations: torch.Tensor, inner: torch.Tensor, labels: torch.Tensor) -> Any:
        weight = inner.unsqueeze(-1).to(representations.dtype)
        pooled = (representations * weight).sum(1) / weight.sum(1)
        return functional.mse_loss(self.output(pooled).squeeze(-1).float(), labels, reduction="sum")


class FairESM(Peer):
    """fair-esm's own model, unchanged."""

    def __init__(self, source: MolfunStructureModel, kind: str) -> None:
        super().__init__(source)
        import esm

        config = source.backbone.config.to_dict()
        self.trunk = esm.model.esm2.ESM2(**config, alphabet="ESM-1b")
        self.trunk.load_state_dict(source.backbone.model.state_dict())
        self.last = config["num_layers"]
        self.converter = self.trunk.alphabet.get_batch_converter()
        self.trunk.requires_grad_(kind == "full")

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> Any:
        found = self.trunk(tokens, repr_layers=[self.last])["representations"][self.last]
        return self.loss(found, self.inner(tokens), labels)


class HuggingFace(Peer):
    """EsmModel of transformers with adapters of peft.

    Parameters
    ----------
    source, kind
        Model with the weights, and what trains.
    attention
        transformers' name of the implementation of attention.
    """

    def __init__(self, source: MolfunStructureModel, kind: str, *, attention: str = "sdpa") -> None:
        super().__init__(source)
        from transformers import EsmConfig, EsmModel

        size = source.backbone.config
        config = EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=size.embed_dim,
            num_hidden_layers=size.num_layers, num_attention_heads=size.attention_heads,
            intermediate_size=4 * size.embed_dim, position_embedding_type="rotary",
            token_dropout=True, emb_layer_norm_before=False, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5, attn_implementation=attention,
        )  # fmt: skip
        self.trunk = EsmModel(config, add_pooling_layer=False).to(self.device)
        ours = {canonical_name(n): t for n, t in source.backbone.model.state_dict().items()}
        own = self.trunk.state_dict()
        ours["rotary_embeddings.inv_freq"] = ours["layers.0.self_attn.rot_emb.inv_freq"]
        filled = {n: ours[canonical_name(n)] for n in own if canonical_name(n) in ours}
        unfilled = [n for n in own if n not in filled and "position_ids" not in n]
        if unfilled:
            raise SystemExit(f"no weights for {unfilled[:5]} of EsmModel")
        self.trunk.load_state_dict({**own, **filled})
        self.trunk.requires_grad_(kind == "full")
        if kind == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            adapters = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"])
            inject_adapter_in_model(adapters, self.trunk)
        if kind == "partial":
            for layer in self.trunk.encoder.layer[-2:]:
                layer.requires_grad_(True)
            self.trunk.encoder.emb_layer_norm_after.requires_grad_(True)
        import esm

        alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
        self.converter = alphabet.get_batch_converter()
        self.to(self.device)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> Any:
        mask = (tokens != 1).long()
        found = self.trunk(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.loss(found, self.inner(tokens), labels)


class Molfun(Peer):
    """Molfun's packed forward pass in the same bare loop as the others."""

    def __init__(
        self,
        source: MolfunStructureModel,
        kind: str,
        *,
        base: Literal["float32", "int8"] = "float32",
    ) -> None:
        super().__init__(source)
        self.model = copy.deepcopy(source)
        if kind == "lora":
            LoRAFinetune(rank=RANK, alpha=2 * RANK, base=base).setup(self.model)
        else:
            self.model.backbone.requires_grad_(kind == "full")
        self.model.eval()

    def features(self, texts: Sequence[str]) -> Any:
        batch = SequenceDataset.from_list(list(texts))
        backbone = self.model.backbone
        features = backbone.collate([backbone.featurize(s) for s in batch])
        return harness.moved(features, self.device)

    def forward(self, features: Any, labels: torch.Tensor) -> Any:
        pooled = self.model.backbone(features, outputs=("mean",)).mean
        return functional.mse_loss(self.output(pooled).squeeze(-1).float(), labels, reduction="sum")


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    mode: str
    size: str
    texts: tuple[str, ...]
    package: Literal["transformers", "fair-esm", "molfun"]
    order: Literal["random", "sorted"] = "random"
    kernel: Literal["torch", "onednn"] = "torch"
    bf16: bool = False
    cache: Literal["off", "memory"] = "off"


def variants_of(mode: str, texts: tuple[str, ...], args: argparse.Namespace) -> list[Variant]:
    """Return the rows of a table, the baseline first."""

    def row(label: str, package: Any, **options: Any) -> Variant:
        allocator = "keep" if package == "molfun" else "system"
        case = Case(mode, args.size, texts, package, **options)
        return Variant(label, case, {"MOLFUN_ALLOCATOR": allocator})

    best = "onednn" if args.onednn else "torch"
    if mode in LONG_RUNS:
        once = f"({EPOCHS} x one)"
        return [
            row(f"transformers, default {once}", "transformers"),
            row(f"transformers, sorted {once}", "transformers", order="sorted"),
            row(f"molfun, no cache {once}", "molfun", kernel=best),
            row(f"molfun, cache ({EPOCHS} epochs run)", "molfun", kernel=best, cache="memory"),
        ]
    rows = [
        row("transformers sdpa, default", "transformers"),
        row("transformers sdpa, sorted", "transformers", order="sorted"),
    ]
    if mode != "lora" and args.fair_esm:
        rows.append(row("fair-esm, default", "fair-esm"))
    rows.append(row("molfun, torch's product", "molfun"))
    if args.onednn:
        rows.append(row("molfun, oneDNN's product", "molfun", kernel="onednn"))
    if args.bf16:
        rows += [
            row("transformers bf16, default", "transformers", bf16=True),
            row("transformers bf16, sorted", "transformers", order="sorted", bf16=True),
            row("molfun bf16", "molfun", bf16=True),
        ]
    return rows


def batches_of(order: Sequence[int], size: int = BATCH) -> Batches:
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def inputs_of(peer: Peer, texts: Sequence[str], batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Yield features and labels of one batch after the other."""
    for batch in batches:
        chosen = [texts[i] for i in batch]
        labels = torch.tensor([len(text) / 100 for text in chosen], device=peer.device)
        yield peer.features(chosen), labels


def one_pass(
    peer: Peer, inputs: Iterable[tuple[Any, Any]], *, train: bool, dtype: torch.dtype | None
) -> float:
    """Return the mean loss over all sequences, before any step; autocast to a `dtype` if any."""
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)  # rate 0: every round sees the same weights
    total, n = torch.zeros((), device=peer.device), 0
    casts = isinstance(peer, Molfun) and dtype and not train and bf16.units()
    with bf16.cast_once() if casts else nullcontext():  # as `embed` does it
        for features, labels in inputs:
            context: Any = torch.autocast(peer.device.type, dtype) if dtype else nullcontext()
            with context, torch.set_grad_enabled(train):
                loss = peer(features, labels)
            if train:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            total += loss.detach()
            n += len(labels)
    return float(total) / n


def passes(case: Case, source: Any) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions: a pass over one batch to warm up, and one over all."""
    classes = {"transformers": HuggingFace, "fair-esm": FairESM, "molfun": Molfun}
    kind = {"head": "head", "inference": "head"}.get(case.mode, case.mode)
    peer = classes[case.package](source, kind)
    batches = batches_in(case.order, case.texts)
    dtype = torch.bfloat16 if case.bf16 else None

    def run(some: Batches) -> float:
        inputs = inputs_of(peer, case.texts, some)
        return one_pass(peer, inputs, train=case.mode != "inference", dtype=dtype)

    return lambda: run(batches[:1]), lambda: run(batches)


def fits(case: Case, source: Any) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions: ``fit`` on one batch to warm up, and on all."""
    data = SequenceDataset.from_list([(t, len(t) / 100) for t in case.texts])
    loader = [SampleBatch([data[i] for i in b]) for b in batches_in(case.order, case.texts)]
    strategy = (
        PartialFinetune(unfreeze_last_n=2, lr_trunk=1e-9)
        if case.mode == "partial"
        else HeadOnlyFinetune(lr=1e-9)
    )

    def run(part: Any, n: int) -> float:
        model = copy.deepcopy(source)
        history = model.fit(part, strategy=strategy, epochs=n, cache=case.cache)
        return float(history[0]["train_loss"])

    n_epochs = EPOCHS if case.cache == "memory" else 1
    return lambda: run(loader[:1], 1), lambda: run(loader, n_epochs)


def batches_in(order: str, texts: Sequence[str], size: int = BATCH) -> Batches:
    """Return batches in random order, or of similar length."""
    if order == "sorted":
        return batches_of(np.argsort([len(t) for t in texts]).tolist(), size)
    return batches_of(np.random.default_rng(1).permutation(len(texts)).tolist(), size)


def source_of(size: str, device: str = "cpu") -> MolfunStructureModel:
    """Return the model from which all variants take their weights."""
    return MolfunStructureModel(
        NAMES[size],
        head="linear",
        head_config={"standardize": False},
        task_config={"standardize": False},
        device=device,
        seed=0,
    )


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case; runs in the process of its row."""
    logging.disable(logging.WARNING)
    kernels.set_matrix_kernel(case.kernel)
    source = source_of(case.size)
    through_fit = case.package == "molfun" and case.mode in LONG_RUNS
    return (fits if through_fit else passes)(case, source)


def table(mode: str, texts: tuple[str, ...], args: argparse.Namespace) -> None:
    """Measure the variants in turns and print their medians."""
    variants = variants_of(mode, texts, args)
    results = harness.compare(
        variants, prepare, rounds=args.rounds, threads=args.threads, enough=ENOUGH
    )
    epochs = EPOCHS if mode in LONG_RUNS else 1
    # without a cache all epochs cost the same, so one is measured and multiplied
    seconds = [
        r.cpu * (1 if v.settings.cache == "memory" else epochs)
        for r, v in zip(results, variants, strict=True)
    ]
    work = epochs * sum(map(len, texts))
    print(f"\n{TITLES[mode]}, {args.size}, {len(texts)} sequences, batches of {BATCH}")
    print(f"  {'variant':<34}{'res/s':>9}{'x first':>9}{'spread':>9}{'MB':>7}{'loss':>12}")
    for result, taken in zip(results, seconds, strict=True):
        print(
            f"  {result.label:<34}{work / taken:>9.0f}{seconds[0] / taken:>9.2f}"
            f"{result.spread:>8.0%}{result.memory:>8.0f}{result.value:>12.6f}",
            flush=True,
        )
    ours = "molfun, torch's product"
    bounds = [Bound(ours, "transformers sdpa, default", 1.0)]
    exact = [r for r in results if "bf16" not in r.label]
    # long runs measure one epoch without a cache and several with it, which cannot be compared here
    harness.judge(TITLES[mode], exact, () if mode in LONG_RUNS else bounds)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=NAMES, default="8M")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16")
    parser.add_argument("--no-onednn", dest="onednn", action="store_false")
    parser.add_argument("--fair-esm", action="store_true", help="also fair-esm, the slowest")
    parser.add_argument("--modes", nargs="+", choices=TITLES, default=list(TITLES))
    args = parser.parse_args()
    texts = tuple(sequences(args.sequences, args.seed))
    args.onednn = args.onednn and "onednn" in harness.gemm_peaks(args.threads)
    print(harness.machine(args.threads))
    print(f"{sum(map(len, texts)):,} residues in {len(texts)} sequences", flush=True)
    for mode in args.modes:
        table(mode, texts, args)
    harness.finish()


if __name__ == "__main__":
    main()
