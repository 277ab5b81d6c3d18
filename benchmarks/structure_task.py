"""Compare folding, and steps on AlphaFold's losses, with stock openfold on equal weights.

    python benchmarks/structure_task.py --lengths 64 128 --modes fold lora
    python benchmarks/structure_task.py --modes profile --lengths 64

The model is model_1_ptm with random weights. "stock" is openfold with the shims that let it run on
a CPU: its forward pass, and ``AlphaFoldLoss`` on labels from its own training pipeline. A fold has
3 recycling passes; the row "4 trunks" is 4 forward passes of the fast trunk alone. A step is
forward, loss and backward of LoRA (rank 8). Above 64 residues stock recomputes the activations of
each block, and so does "recomputed"; "molfun" keeps those of as many blocks as fit, which is what
``fit`` does. ``memory`` compares LoRA with full training. The value of a step is the norm of its
gradients.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant

Mode = Literal["fold", "lora", "full", "memory", "profile"]
MODES: tuple[Mode, ...] = ("fold", "lora", "memory", "profile")
RECYCLES = 3
KEPT = 64
"""Residues up to which steps keep all activations."""
WEIGHTS = {"fape": 1.0, "supervised_chi": 1.0, "distogram": 0.3, "plddt": 0.01, "tm": 0.1}


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    mode: Mode
    length: int
    kind: Literal["stock", "molfun", "trunk"]
    recompute: bool | None = None


def sample_of(length: int) -> Any:
    """Return a protein whose coordinates are a random walk with all atoms of alanine or more."""
    from molfun.protein import Protein
    from molfun.sample import Sample

    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))
    protein = Protein.from_sequence(letters, name="p")
    trace = np.cumsum(rng.normal(0, 2.2, (length, 1, 3)), axis=0)
    positions = (trace + rng.normal(0, 1.5, (length, 37, 3))).astype(np.float32)
    mask = np.zeros((length, 37), np.float32)
    mask[:, :5] = 1
    protein = replace(
        protein, atom_positions=positions * mask[..., None], atom_mask=mask, resolution=2.0
    )
    return Sample(id="p", protein=protein, target=protein)


def model_of(case: Case) -> Any:
    """Return the model, set up for the mode."""
    from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel

    logging.disable(logging.WARNING)
    fold = case.mode == "fold"
    model = MolfunStructureModel(
        "openfold",
        head="structure",
        task_config={"experimentally_resolved": 0.0, "clamped_fape": 0.9, **WEIGHTS},
        device="cpu",
        kernels="stock" if case.kind == "stock" else "fast",
        backbone_config={
            "fill_zero_init": 0.005,
            "recycling": RECYCLES if fold else 0,
            "checkpointing": case.recompute,
        },
    )
    model.requires_grad_(False)
    if case.mode in ("lora", "full"):
        (LoRAFinetune(rank=8) if case.mode == "lora" else FullFinetune()).setup(model)
    return model.eval()


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Build the model, and return the measured function; runs in the process of its row."""
    model, sample = model_of(case), sample_of(case.length)
    measure = _fold(model, sample, case) if case.mode == "fold" else _step(model, sample, case)
    return measure, measure


def _fold(model: Any, sample: Any, case: Case) -> harness.Measure:
    backbone = model.backbone
    batch = backbone.collate([backbone.featurize(sample)])

    def stock() -> float:
        with torch.no_grad():
            out = backbone.model({key: batch[key] for key in backbone._inputs})
        return float(out["plddt"].mean())

    def trunk() -> float:
        one = {key: value[..., :1] for key, value in batch.items()}
        with torch.no_grad():
            for _ in range(RECYCLES + 1):
                found = backbone(one, outputs=("single", "pair"))
        return float(found.single.norm())

    def ours() -> float:
        (folded,) = model.fold([sample], recycles=RECYCLES)
        return float(folded.plddt.mean())

    functions: dict[str, harness.Measure] = {"stock": stock, "trunk": trunk, "molfun": ours}
    return functions[case.kind]


def _step(model: Any, sample: Any, case: Case) -> harness.Measure:
    total = _stock_loss(model, sample) if case.kind == "stock" else _loss(model, sample)

    def step() -> float:
        total().backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
        for parameter in model.parameters():
            parameter.grad = None
        return float(norm.norm())

    return step


def _loss(model: Any, sample: Any) -> Any:
    from molfun.models import memory
    from molfun.training.inputs import Inputs
    from molfun.training.supervised import SupervisedRunner

    model.task.fit_targets([sample.target])
    if model.backbone.checkpointing is None:
        print(
            memory.forecast(model.backbone, [[sample]], torch.device("cpu"), trained=0), flush=True
        )
    runner = SupervisedRunner(model.backbone, model.heads, device=torch.device("cpu"))
    inputs = Inputs.of([sample])
    return lambda: runner.loss(inputs, runner.outputs(inputs)).total


def _stock_loss(model: Any, sample: Any) -> Any:
    from openfold.utils.loss import AlphaFoldLoss

    from molfun.backbones.openfold import features, memory

    backbone = model.backbone
    config = copy.deepcopy(backbone.config.loss)
    for name in ("fape", "supervised_chi", "distogram", "tm"):
        config[name].weight = WEIGHTS[name]
    config.plddt_loss.weight, config.masked_msa.weight = WEIGHTS["plddt"], 0.0
    data = copy.deepcopy(backbone.data_config)
    with data.unlocked():
        data.predict.supervised = True
    raw = features.raw_from_protein(sample.protein, None)
    raw["resolution"] = np.array([sample.protein.resolution], np.float32)
    made = features.process(raw, data, seed=int(sample.content_key()[:8], 16))
    batch = {key: value[None] for key, value in made.items()}
    last = {key: value[..., -1] for key, value in batch.items()}
    last |= {name: last[name].reshape(1) for name in ("resolution", "seq_length")}
    last["use_clamped_fape"] = torch.tensor([0.9])
    loss = AlphaFoldLoss(config)

    def total() -> torch.Tensor:
        memory.checkpoint_blocks(backbone.model, bool(backbone.checkpointing))
        out = backbone.model({key: batch[key] for key in backbone._inputs})
        found: torch.Tensor = loss(out, dict(last))
        return found

    return total


def profile(length: int, threads: int) -> None:
    """Print the share of each part of a LoRA step."""
    import time

    torch.set_num_threads(threads)
    model, sample = model_of(Case("lora", length, "molfun", recompute=False)), sample_of(length)
    from molfun.training.inputs import Inputs
    from molfun.training.supervised import SupervisedRunner

    model.task.fit_targets([sample.target])
    runner = SupervisedRunner(model.backbone, model.heads, device=torch.device("cpu"))
    inputs, module = Inputs.of([sample]), model.backbone.model.structure_module
    spent = {"structure module": 0.0}

    def start(*_: Any) -> None:
        spent["from"] = time.perf_counter()

    def stop(*_: Any) -> None:
        spent["structure module"] += time.perf_counter() - spent["from"]

    handles = [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    for _ in range(2):
        spent["structure module"] = 0.0
        times = [time.perf_counter()]
        outputs = runner.outputs(inputs)
        times.append(time.perf_counter())
        total = runner.loss(inputs, outputs).total
        times.append(time.perf_counter())
        total.backward()
        times.append(time.perf_counter())
    for handle in handles:
        handle.remove()
    forward, loss, backward = (b - a for a, b in itertools.pairwise(times))
    whole = times[-1] - times[0]
    parts = {
        "trunk, forward": forward - spent["structure module"],
        "structure module, forward": spent["structure module"],
        "loss": loss,
        "backward": backward,
    }
    print(f"\nLoRA step, {length} residues: {whole:.2f} s")
    for name, seconds in parts.items():
        print(f"  {name:<28}{seconds:>8.3f} s{seconds / whole:>8.1%}")


def rows_of(mode: Mode, length: int) -> dict[str, Case]:
    """Return the rows of a table by their labels."""
    if mode == "memory":
        return {
            "LoRA, recomputed": Case("lora", length, "molfun", recompute=True),
            "LoRA": Case("lora", length, "molfun", recompute=False),
            "full, recomputed": Case("full", length, "molfun", recompute=True),
            "full": Case("full", length, "molfun", recompute=False),
        }
    long = mode == "lora" and length > KEPT
    rows = {
        "stock": Case(mode, length, "stock", long),
        "molfun": Case(mode, length, "molfun", None if long else False),
    }
    if long:
        rows["recomputed"] = Case(mode, length, "molfun", recompute=True)
    return {**rows, "4 trunks": Case(mode, length, "trunk")} if mode == "fold" else rows


def bounds_of(mode: Mode, length: int) -> list[Bound]:
    """Return what a table promises."""
    if mode == "fold":
        return [Bound("molfun", "4 trunks", 1.1), Bound("molfun", "stock", 1.0)]
    if mode == "memory":
        return [
            Bound("LoRA, recomputed", "full, recomputed", 0.5, "memory"),
            Bound("LoRA, recomputed", "full", 0.5, "memory"),
        ]
    return [Bound("molfun", "stock", 1 / (1.3 if length < 128 else 1.7))]


def table(mode: Mode, length: int, args: argparse.Namespace, about: str) -> None:
    """Measure, print and judge one table."""
    keep = {"stock": "system", "molfun": "keep", "trunk": "keep"}
    rows = [
        Variant(label, case, {"MOLFUN_ALLOCATOR": keep[case.kind]})
        for label, case in rows_of(mode, length).items()
        if label != "stock" or not args.no_stock
    ]
    # peaks of the activations of several models do not fit into memory together
    apart = mode == "memory" or (mode == "lora" and length > KEPT)
    results = harness.compare(rows, prepare, rounds=args.rounds, threads=args.threads, apart=apart)
    title = f"{mode}, {length} residues"
    harness.show(title, results, value="mean pLDDT" if mode == "fold" else "norm of gradients")
    harness.record(args.history, "structure_task", title, results, about)
    harness.judge(title, results, bounds_of(mode, length), agree=None)
    if mode == "memory":
        lora, kept, *full = results
        if length <= KEPT:
            harness.hold(title, "LoRA, recomputed, MB over the model", lora.memory, 1500)
        harness.judge(title, [lora, kept], agree=1e-3)
        harness.judge(title, full, agree=1e-3)
    else:
        harness.judge(title, [r for r in results if r.label != "4 trunks"], agree=1e-3)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--no-stock", action="store_true", help="leave stock openfold out")
    parser.add_argument("--quick", action="store_true", help="64 residues, one round")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.rounds, args.modes = [64], 1, ["lora"]
    about = harness.machine(args.threads)
    print(about)
    for mode in args.modes:
        for length in args.lengths:
            if mode == "profile":
                profile(length, args.threads)
            else:
                table(mode, length, args, about)
    harness.finish()


if __name__ == "__main__":
    main()
