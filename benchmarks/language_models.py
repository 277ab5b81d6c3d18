"""Compare families of protein language models with transformers and peft: residues per second.

    python benchmarks/language_models.py
    python benchmarks/language_models.py --families esmc prott5 --blocks 2
    python benchmarks/language_models.py --scan
    python benchmarks/language_models.py --parity

Models have random weights, the published width and a few blocks. Sequences have log-normal lengths
(median 250). transformers pads batches of 8, in random order and sorted by length; Molfun packs the
same batches. A LoRA step trains adapters of rank 8 on the mean representation, at rate 0, so that
all rounds see the same weights. The numbers compared are sums over representations, or losses.

``--scan`` measures masked marginals of a protein of 200 residues in ESM-2 (molfun scan) against
transformers at its best batch size.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import harness
import numpy as np
import torch
from esm2_vs_peers import batches_in, sequences
from harness import Bound, Variant
from torch import nn

from molfun import LoRAFinetune, MolfunStructureModel
from molfun.registry import BACKBONES
from molfun.sample import Sample

SIZES = {
    "esm": "esm1v", "saprot": "saprot_35m", "esmc": "esmc_300m", "prott5": "prott5_xl",
    "prostt5": "prostt5", "ankh": "ankh_base",
}  # fmt: skip
RANK = 8
MODES = {"inference": "Inference", "lora": f"LoRA (rank {RANK}) step"}
SCAN_SIZES = {"8M": "esm2_t6_8M_UR50D", "35M": "esm2_t12_35M_UR50D", "tiny": "esm2_tiny"}
RESIDUES = 200
BATCHES = (1, 4, 8, 16, 32)
"""Batch sizes of transformers, of which the best counts."""


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    mode: str
    family: str
    blocks: int
    texts: tuple[str, ...]
    package: Literal["transformers", "molfun"]
    order: str = "random"
    batch: int = 8
    bf16: bool = False


def model_of(case: Case) -> MolfunStructureModel:
    """Return the model from which both take their weights, the same in every process."""
    if case.mode == "scan":
        return MolfunStructureModel(SCAN_SIZES[case.family], device="cpu", seed=0)
    cls: Any = BACKBONES[case.family]
    config = dict(cls.presets[SIZES[case.family]])
    config["num_layers" if "num_layers" in config else "num_hidden_layers"] = case.blocks
    if "dropout_rate" in cls.settings:
        config["dropout_rate"] = 0.0
    return MolfunStructureModel(case.family, config=config, device="cpu", seed=0)


class Stock(nn.Module):
    """transformers' own class with the weights of a backbone, on padded batches."""

    def __init__(self, source: MolfunStructureModel, *, lora: bool) -> None:
        super().__init__()
        self.backbone: Any = source.backbone
        own = self.backbone.model
        pooler = {"add_pooling_layer": False} if type(own).__name__ == "EsmModel" else {}
        self.trunk: Any = type(own)(own.config, **pooler)
        self.trunk.load_state_dict(own.state_dict())
        self.trunk.eval().requires_grad_(False)
        if lora:
            from peft import LoraConfig, inject_adapter_in_model

            targets = list(self.backbone.lora_targets)
            inject_adapter_in_model(
                LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets), self.trunk
            )

    def features(self, texts: Sequence[str]) -> Any:
        """Return padded tokens."""
        rows = [self.backbone.featurize(Sample(id="s", sequence=t))["tokens"] for t in texts]
        padding = self.backbone.alphabet.padding
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

    def means(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean over residues."""
        mask = tokens != self.backbone.alphabet.padding
        found = self.trunk(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        around = torch.tensor([t for part in self.backbone.around() for t in part])
        inner = (mask & ~torch.isin(tokens, around)).unsqueeze(-1).to(found.dtype)
        return (found * inner).sum(1) / inner.sum(1)


class Packed(nn.Module):
    """Molfun's packed forward pass in the same loop."""

    def __init__(self, source: MolfunStructureModel, *, lora: bool) -> None:
        super().__init__()
        self.model = copy.deepcopy(source)
        if lora:
            LoRAFinetune(rank=RANK, alpha=2 * RANK).setup(self.model)
        else:
            self.model.backbone.requires_grad_(False)
        self.model.eval()

    def features(self, texts: Sequence[str]) -> Any:
        """Return packed tokens."""
        backbone = self.model.backbone
        return backbone.collate([backbone.featurize(Sample(id="s", sequence=t)) for t in texts])

    def means(self, features: Any) -> torch.Tensor:
        """Return the mean over residues."""
        found: torch.Tensor = self.model.backbone(features, outputs=("mean",)).need("mean")
        return found


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case; runs in the process of its row."""
    logging.disable(logging.WARNING)
    source = model_of(case)
    if case.mode == "scan":
        return scans(case, source)
    train = case.mode == "lora"
    peer: Any = (Stock if case.package == "transformers" else Packed)(source, lora=train)
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0) if train else None

    def run(batches: list[list[int]]) -> float:
        total = 0.0
        for batch in batches:
            features = peer.features([case.texts[i] for i in batch])
            with torch.set_grad_enabled(train):
                loss = peer.means(features).square().mean(1).sum()
            if optimizer is not None:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            total += float(loss.detach())
        return total / len(case.texts)

    batches = batches_in(case.order, case.texts)
    return lambda: run(batches[:1]), lambda: run(batches)


def scans(case: Case, source: MolfunStructureModel) -> tuple[harness.Measure, harness.Measure]:
    """Return masked marginals of all residues, by transformers or by Molfun."""
    (text,) = case.texts
    if case.package == "molfun":

        def ours(text: str) -> float:
            precision = "bf16" if case.bf16 else "fp32"
            return float(np.abs(source.score_variants(text, precision=precision).scores).mean())

        return lambda: ours(text[:20]), lambda: ours(text)
    rows = list(_masked_rows(source, text))
    import transformers

    backbone: Any = source.backbone
    sizes = backbone.config
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.attention_heads,
        intermediate_size=4 * sizes.embed_dim, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = _with_weights(transformers.EsmForMaskedLM(config), source)
    columns, own = backbone.residue_tokens, backbone.alphabet.encode(text)

    @torch.inference_mode()
    @torch.autocast("cpu", torch.bfloat16, enabled=case.bf16)
    def theirs(rows: list[torch.Tensor]) -> float:
        scores = []
        for start in range(0, len(rows), case.batch):
            tokens = torch.stack(rows[start : start + case.batch])
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            for row in range(len(tokens)):
                probs = logits[row, start + row + 1].float().log_softmax(-1)
                scores.append((probs[columns] - probs[own[start + row]]).abs().sum())
        return float(torch.stack(scores).sum()) / (19 * len(rows))

    return lambda: theirs(rows[: case.batch]), lambda: theirs(rows)


def _masked_rows(source: MolfunStructureModel, text: str) -> Iterator[torch.Tensor]:
    tokens = source.backbone.featurize(Sample(id="s", sequence=text))["tokens"]
    for i in range(1, len(text) + 1):
        hidden = tokens.clone()
        hidden[i] = source.backbone.mask_token  # type: ignore[assignment]  # of a language model
        yield hidden


def _with_weights(model: Any, source: MolfunStructureModel) -> Any:
    import tempfile
    from pathlib import Path

    from molfun.models.export import export_hugging_face

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        export_hugging_face(source, path)
        return type(model).from_pretrained(path).eval()


def parity(family: str, args: argparse.Namespace) -> None:
    """Print how far Molfun is from transformers, relative to the size of outputs and gradients.

    In float64 it shows whether the computation is the same; in float32 both round, and a ReLU near
    0 may go either way. bf16 is Molfun under autocast against transformers in float32.
    """
    logging.disable(logging.WARNING)
    source = model_of(Case("parity", family, args.blocks, args.texts, "molfun"))
    stock, ours = Stock(source, lora=False), Packed(source, lora=False)
    tokens, features = stock.features(args.texts), ours.features(args.texts)
    half: float = float("nan")
    cells = []
    for dtype in (torch.float32, torch.float64):
        trunk, model = stock.trunk.to(dtype), ours.model.to(dtype).backbone.model
        trunk.requires_grad_(True)
        model.requires_grad_(True)
        theirs, found = stock.means(tokens), ours.means(features)
        named = dict(model.named_parameters())
        gradients = _gradients(found, named)
        expected = _gradients(theirs, dict(trunk.named_parameters()))
        shared = [name for name in expected if name in gradients]
        wrong = torch.stack([(gradients[n] - expected[n]).norm() for n in shared]).norm()
        size = torch.stack([expected[n].norm() for n in shared]).norm()
        found, theirs = found.detach(), theirs.detach()
        cells += [float((found - theirs).norm() / theirs.norm()), float(wrong / size)]
        if dtype == torch.float32:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                rounded = ours.means(features).float()
            half = float((rounded - theirs).norm() / theirs.norm())
    print(f"  {family:10}" + "".join(f"{cell:12.1e}" for cell in (*cells, half)), flush=True)
    if not max(cells[0], cells[2], cells[3]) <= 1e-5:
        raise SystemExit(f"{family} differs from transformers by more than 1e-5 of its size")


def _gradients(means: torch.Tensor, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # not of the squared norm: a layer norm at the end makes it a constant
    weights = torch.linspace(-1, 1, means.shape[1], dtype=means.dtype)
    found = torch.autograd.grad((means * weights).sum(), named.values(), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def rows_of(mode: str, family: str, args: argparse.Namespace) -> list[Variant]:
    """Return the rows of a table, the baseline first."""

    def row(label: str, package: Any, **options: Any) -> Variant:
        allocator = "keep" if package == "molfun" else "system"
        case = Case(mode, family, args.blocks, args.texts, package, **options)
        return Variant(label, case, {"MOLFUN_ALLOCATOR": allocator})

    if mode == "scan":
        rows = [row(f"transformers, batches of {n}", "transformers", batch=n) for n in BATCHES]
        rows.append(row("molfun", "molfun"))
        if args.bf16:
            label = "transformers bf16, batches of"
            rows += [row(f"{label} {n}", "transformers", batch=n, bf16=True) for n in BATCHES]
            rows.append(row("molfun bf16", "molfun", bf16=True))
        return rows
    return [
        row("transformers, default", "transformers"),
        row("transformers, sorted", "transformers", order="sorted"),
        row("molfun", "molfun"),
    ]


def table(mode: str, family: str, title: str, args: argparse.Namespace) -> None:
    """Measure the variants in turns and print their medians, by CPU seconds."""
    variants = rows_of(mode, family, args)
    results = harness.compare(variants, prepare, rounds=args.rounds, threads=args.threads)
    work = sum(map(len, args.texts))
    print(f"\n{title}")
    print(f"  {'variant':<30}{'res/s':>9}{'x first':>9}{'spread':>9}{'MB':>7}{'value':>12}")
    for r in results:
        print(
            f"  {r.label:<30}{work / r.cpu:>9.0f}{results[0].cpu / r.cpu:>9.2f}{r.spread:>8.0%}"
            f"{r.memory:>8.0f}{r.value:>12.6f}",
            flush=True,
        )
    for label, like in (("molfun", "transformers, "), ("molfun bf16", "transformers")):
        ours = [r.cpu for r in results if r.label == label]
        best = min((r.cpu for r in results if r.label.startswith(like)), default=0.0)
        if ours:
            print(f"  {label}: {best / ours[0]:.2f} of the best row of transformers", flush=True)
    exact = [r for r in results if "bf16" not in r.label]
    harness.judge(title, exact, [Bound("molfun", results[0].label, 1.0)])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--blocks", type=int, default=2, help="Blocks of each model.")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scan", action="store_true", help="Masked marginals alone.")
    parser.add_argument("--bf16", action="store_true", help="Of --scan also in bfloat16.")
    parser.add_argument("--parity", action="store_true", help="Differences alone, no times.")
    parser.add_argument("--size", choices=SCAN_SIZES, default="8M", help="ESM-2 of --scan.")
    parser.add_argument("--quick", action="store_true", help="Two families, few sequences.")
    args = parser.parse_args()
    if args.quick:
        args.families, args.sequences, args.rounds = ["saprot", "esmc"], 8, 1
    print(harness.machine(args.threads))
    if args.scan:
        rng = np.random.default_rng(0)
        args.texts = ("".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), RESIDUES)),)
        table("scan", args.size, f"Masked marginals, {args.size}, {RESIDUES} residues", args)
    elif args.parity:
        args.texts = tuple(text[:250] for text in sequences(4, 0))
        columns = ("output, 32", "grad., 32", "output, 64", "grad., 64", "bf16")
        print(f"Differences from transformers, published width, {args.blocks} blocks")
        print(f"  {'family':10}" + "".join(f"{name:>12}" for name in columns))
        for family in args.families:
            parity(family, args)
    else:
        args.texts = tuple(sequences(args.sequences, 0))
        for family in args.families:
            for mode, title in MODES.items():
                about = f"{title}, {SIZES[family]} with {args.blocks} blocks"
                table(mode, family, f"{about}, {args.sequences} sequences", args)
    harness.finish()


if __name__ == "__main__":
    main()
