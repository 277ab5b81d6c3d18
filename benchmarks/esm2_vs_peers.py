"""ESM-2 in Molfun against fair-esm and transformers + peft, on the same weights and sequences.

    python benchmarks/esm2_vs_peers.py --size 8M --sequences 64 --rounds 3

needs ``pip install transformers``. One process, one thread by default; variants take turns within
every round, and the table shows medians over rounds of process CPU seconds (with one thread: time).
Sequences are random with log-normal lengths (median 250, 50 to 1,000); residues are counted
without padding. Every variant starts from the same weights, sees the same labels, and its loss over
the first pass is compared.

The allocator keeps large buffers for all variants (`molfun.nn.allocator`), as in any process that
uses Molfun. Variants of transformers: "default" is batches of 8 in random order, "sorted" the same
sorted by length, so that little is padded. Molfun takes the random batches.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
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
from molfun.nn import kernels
from molfun.sample import SampleBatch

NAMES = {"8M": "esm2_t6_8M_UR50D", "35M": "esm2_t12_35M_UR50D", "tiny": "esm2_tiny"}
RANK, BATCH = 8, 8
Batches = list[list[int]]


def sequences(n: int, seed: int) -> list[str]:
    """Random proteins with log-normal lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(math.log(250), 0.6, n)), 50, 1000).astype(int)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), k)) for k in lengths]


class Peer(nn.Module):
    """What every variant computes: mean over the residues, one linear layer, mean squared error."""

    def __init__(self, source: MolfunStructureModel) -> None:
        super().__init__()
        import copy

        head: Any = source.head
        self.output: nn.Linear = copy.deepcopy(head.layers[-1])

    def loss(self, representations: torch.Tensor, inner: torch.Tensor, labels: torch.Tensor) -> Any:
        weight = inner.unsqueeze(-1).to(representations.dtype)
        pooled = (representations * weight).sum(1) / weight.sum(1)
        return functional.mse_loss(self.output(pooled).squeeze(-1).float(), labels, reduction="sum")


class FairESM(Peer):
    """fair-esm as it is."""

    def __init__(self, source: MolfunStructureModel, kind: str) -> None:
        super().__init__(source)
        import esm

        config = source.backbone.config.to_dict()
        self.trunk = esm.model.esm2.ESM2(**config, alphabet="ESM-1b")
        self.trunk.load_state_dict(source.backbone.model.state_dict())
        self.last = config["num_layers"]
        self.converter = self.trunk.alphabet.get_batch_converter()
        self.trunk.requires_grad_(kind == "full")

    def forward(self, texts: Sequence[str], labels: torch.Tensor) -> Any:
        tokens = self.converter([("", t) for t in texts])[2]
        found = self.trunk(tokens, repr_layers=[self.last])["representations"][self.last]
        return self.loss(found, (tokens != 0) & (tokens != 1) & (tokens != 2), labels)


class HuggingFace(Peer):
    """transformers.EsmModel with scaled_dot_product_attention, adapters by peft."""

    def __init__(self, source: MolfunStructureModel, kind: str) -> None:
        super().__init__(source)
        from transformers import EsmConfig, EsmModel

        size = source.backbone.config
        config = EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=size.embed_dim,
            num_hidden_layers=size.num_layers, num_attention_heads=size.attention_heads,
            intermediate_size=4 * size.embed_dim, position_embedding_type="rotary",
            token_dropout=True, emb_layer_norm_before=False, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5, attn_implementation="sdpa",
        )  # fmt: skip
        self.trunk = EsmModel(config, add_pooling_layer=False)
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

    def forward(self, texts: Sequence[str], labels: torch.Tensor) -> Any:
        tokens = self.converter([("", t) for t in texts])[2]
        mask = (tokens != 1).long()
        found = self.trunk(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.loss(found, (tokens != 0) & (tokens != 1) & (tokens != 2), labels)


class Molfun(Peer):
    """The packed path of Molfun under the same bare loop as the others."""

    def __init__(self, source: MolfunStructureModel, kind: str) -> None:
        super().__init__(source)
        import copy

        self.model = copy.deepcopy(source)
        if kind == "lora":
            LoRAFinetune(rank=RANK, alpha=2 * RANK).setup(self.model)
        else:
            self.model.backbone.requires_grad_(kind == "full")
        self.model.eval()

    def forward(self, texts: Sequence[str], labels: torch.Tensor) -> Any:
        batch = SequenceDataset.from_list(list(texts))
        backbone = self.model.backbone
        features = backbone.collate([backbone.featurize(s) for s in batch])
        pooled = backbone(features, outputs=("mean",)).mean
        return functional.mse_loss(self.output(pooled).squeeze(-1).float(), labels, reduction="sum")


# --- measuring -----------------------------------------------------------------------------------


def batches_of(order: Sequence[int]) -> Batches:
    return [list(order[i : i + BATCH]) for i in range(0, len(order), BATCH)]


def one_pass(
    peer: Peer, texts: Sequence[str], batches: Batches, *, train: bool, bf16: bool
) -> tuple[float, float]:
    """CPU seconds of a pass over all sequences, and its loss before any step."""
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)  # rate 0: every round sees the same weights
    context: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    total = 0.0
    start = time.process_time()
    for batch in batches:
        labels = torch.tensor([len(texts[i]) / 100 for i in batch])
        with context, torch.set_grad_enabled(train):
            loss = peer([texts[i] for i in batch], labels)
        if train:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        total += float(loss.detach())
    return time.process_time() - start, total


def rounds_of(
    variants: dict[str, Callable[[], tuple[float, float]]], rounds: int
) -> dict[str, tuple[list[float], float]]:
    """Seconds of every round of each variant, taking turns, and the loss."""
    for run in variants.values():
        run()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses = {}
    for _ in range(rounds):
        for name, run in variants.items():
            taken, losses[name] = run()
            seconds[name].append(taken)
    return {name: (seconds[name], losses[name]) for name in variants}


def show(title: str, results: dict[str, tuple[list[float], float]], work: float) -> None:
    base = statistics.median(next(iter(results.values()))[0])
    print(f"\n{title}")
    print(f"  {'variant':<34}{'res/s':>9}{'x first':>9}{'spread':>9}{'loss':>14}")
    for name, (seconds, loss) in results.items():
        middle = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / middle
        print(
            f"  {name:<34}{work / middle:>9.0f}{base / middle:>9.2f}{spread:>8.0%}{loss:>15.5f}",
            flush=True,
        )


def passes(source: MolfunStructureModel, texts: list[str], kind: str, args: Any) -> None:
    """Inference, LoRA or full fine-tuning, a pass over all sequences."""
    rng = np.random.default_rng(1)
    mixed = batches_of(rng.permutation(len(texts)))
    by_length = batches_of(np.argsort([len(t) for t in texts]))
    train = kind != "inference"
    hf, ours = HuggingFace(source, kind), Molfun(source, kind)

    def run(peer: Peer, batches: Batches, kernel: str, bf16: bool = False) -> Any:
        def call() -> tuple[float, float]:
            kernels.set_matrix_kernel(kernel)  # type: ignore[arg-type]  # a name
            return one_pass(peer, texts, batches, train=train, bf16=bf16)

        return call

    variants = {
        "transformers sdpa, default": run(hf, mixed, "torch"),
        "transformers sdpa, sorted": run(hf, by_length, "torch"),
    }
    if kind != "lora":
        variants["fair-esm, default"] = run(FairESM(source, kind), mixed, "torch")
    variants["molfun, torch's product"] = run(ours, mixed, "torch")
    if args.onednn:
        variants["molfun, oneDNN's product"] = run(ours, mixed, "onednn")
    if args.bf16:
        variants["transformers bf16, default"] = run(hf, mixed, "torch", bf16=True)
        variants["transformers bf16, sorted"] = run(hf, by_length, "torch", bf16=True)
        variants["molfun bf16"] = run(ours, mixed, "torch", bf16=True)
    kinds = {"inference": "Inference", "lora": f"LoRA (rank {RANK}) step", "full": "Full step"}
    title = f"{kinds[kind]}, {args.size}, {len(texts)} sequences, batches of {BATCH}"
    show(title, rounds_of(variants, args.rounds), sum(map(len, texts)))


def epochs(source: MolfunStructureModel, texts: list[str], kind: str, args: Any) -> None:
    """20 epochs through ``fit``, with and without the cache, against as many of the peer."""
    import copy

    n_epochs = 20
    rng = np.random.default_rng(1)
    data = SequenceDataset.from_list([(t, len(t) / 100) for t in texts])
    order = batches_of(rng.permutation(len(texts)))
    by_length = batches_of(np.argsort([len(t) for t in texts]))
    peer = HuggingFace(source, "partial" if kind == "partial" else "head")
    strategy = (
        PartialFinetune(unfreeze_last_n=2, lr_trunk=1e-9)
        if kind == "partial"
        else HeadOnlyFinetune(lr=1e-9)
    )
    loader = [SampleBatch([data[i] for i in batch]) for batch in order]

    def fit(cache: Any, n: int) -> Any:
        def call() -> tuple[float, float]:
            model = copy.deepcopy(source)
            start = time.process_time()
            history = model.fit(loader, strategy=strategy, epochs=n, cache=cache)
            taken = (time.process_time() - start) * n_epochs / n
            return taken, history[0]["train_loss"]

        return call

    def peer_epochs(batches: Batches) -> Any:
        # the trunk of the peer runs in every epoch, so one epoch is measured and multiplied
        def call() -> tuple[float, float]:
            taken, loss = one_pass(peer, texts, batches, train=True, bf16=False)
            return taken * n_epochs, loss / len(texts)

        return call

    variants = {
        "transformers, default (20 x one)": peer_epochs(order),
        "transformers, sorted (20 x one)": peer_epochs(by_length),
        "molfun, no cache (20 x one)": fit("off", 1),
        "molfun, cache (20 epochs run)": fit("memory", n_epochs),
    }
    names = {"head": "Head-only, 20 epochs", "partial": "Partial (last 2 blocks), 20 epochs"}
    title = f"{names[kind]}, {args.size}, {len(texts)} sequences"
    show(title, rounds_of(variants, args.rounds), n_epochs * sum(map(len, texts)))


def gemm_peak() -> Iterator[str]:
    """Best rate of float32 products at ESM-2's shapes."""
    for kernel in ("torch", "onednn"):
        try:
            kernels.set_matrix_kernel(kernel)  # type: ignore[arg-type]  # a name
        except ValueError:
            continue
        best = 0.0
        for inner, outer in ((320, 960), (320, 1280), (1280, 320), (480, 1920)):
            x, weight = torch.randn(2048, inner), torch.randn(outer, inner)
            for _ in range(20):
                start = time.process_time()
                kernels.linear(x, weight)
                taken = time.process_time() - start
                best = max(best, 2 * 2048 * inner * outer / taken / 1e9)
        yield f"{kernel} {best:.0f} GFLOP/s"
    kernels.set_matrix_kernel("auto")


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
    parser.add_argument(
        "--modes", nargs="+", default=["inference", "lora", "full", "head", "partial"]
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import logging

    logging.disable(logging.WARNING)
    texts = sequences(args.sequences, args.seed)
    source = MolfunStructureModel(
        NAMES[args.size],
        head="linear",
        head_config={"standardize": False},
        task_config={"standardize": False},
        device="cpu",
        seed=0,
    )
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} thread(s), torch "
        f"{torch.__version__}, float32 products: {', '.join(gemm_peak())}"
    )
    print(f"{sum(map(len, texts)):,} residues in {len(texts)} sequences")
    for mode in args.modes:
        (epochs if mode in ("head", "partial") else passes)(source, texts, mode, args)


if __name__ == "__main__":
    main()
