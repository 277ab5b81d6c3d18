"""Compare OpenFold's own code with Molfun's fast kernels, on equal weights and proteins.

    python benchmarks/openfold_kernels.py --lengths 64 128 --rows 1 32 --modes forward lora
    python benchmarks/openfold_kernels.py --modes forward lora --rows 1 --bf16
    python benchmarks/openfold_kernels.py --errors
    python benchmarks/openfold_kernels.py --quick

The model is the full model_1_ptm trunk with random weights. "stock" is openfold with the shims that
let it run on a CPU, with the system's allocator and with the one that keeps freed buffers. A step
is forward and backward only, without a head: the loss is the sum of squares of ``single``. Steps of
``partial`` with fast kernels start after the frozen blocks, as they do from the second epoch on.

``--bf16`` adds rows in bfloat16: stock under torch's autocast, and Molfun's kernels. ``--errors``
compares what a pass and a step give with the same in float64, for one recycling pass.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant

Mode = Literal["forward", "block", "lora", "partial", "full"]
MODES: tuple[Mode, ...] = ("forward", "block", "lora", "partial", "full")


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    mode: Mode
    length: int
    rows: int
    kernels: Literal["stock", "fast"]
    checkpointing: bool
    cached: bool = False
    config: str = "model_1_ptm"
    device: str = "cpu"
    bf16: bool = False


def model_of(case: Case) -> Any:
    """Return the trunk, set up for the mode."""
    from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel, PartialFinetune

    logging.disable(logging.WARNING)
    model = MolfunStructureModel(
        "openfold",
        config=case.config,
        head="affinity",
        device=case.device,
        kernels=case.kernels,
        backbone_config={
            # openfold initialises output layers to zero, and gradients behind them would be zero
            "fill_zero_init": 0.005,
            "checkpointing": case.checkpointing,
            "max_msa_clusters": case.rows,
            "max_extra_msa": 4,
        },
    )
    strategies = {
        "lora": LoRAFinetune(rank=8),
        "partial": PartialFinetune(unfreeze_last_n=4, unfreeze_structure_module=False),
        "full": FullFinetune(),
    }
    model.requires_grad_(False)
    if case.mode in strategies:
        strategies[case.mode].setup(model)
    model.head.requires_grad_(False)
    return model.eval()


def batch_of(model: Any, case: Case) -> Any:
    """Return a batch of one protein with `case.rows` rows in its alignment."""
    from molfun.protein import Protein
    from molfun.sample import Sample

    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), case.length))
    protein = Protein.from_sequence(letters, name="p")
    batch = model.backbone.collate([model.backbone.featurize(Sample(id="p", protein=protein))])
    generator = torch.Generator().manual_seed(0)
    rows = case.rows - batch["msa_mask"].shape[1]
    for name in ("msa_feat", "msa_mask"):
        extra = batch[name][:, :1].expand(-1, max(rows, 0), *batch[name].shape[2:]).clone()
        if name == "msa_feat":
            extra += torch.randn(extra.shape, generator=generator)
        batch[name] = torch.cat([batch[name], extra], dim=1)
    return harness.moved(batch, torch.device(case.device))


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Build the model, and return the measured functions; runs in the process of its row."""
    model = model_of(case)
    backbone = model.backbone
    if case.mode == "block":
        return _block(backbone, case)
    cast = in_bf16 if case.bf16 else nullcontext
    run = pass_of(backbone, batch_of(model, case), case, cast)
    return run, run


@contextmanager
def in_bf16() -> Iterator[None]:
    """Compute in bfloat16 as `fold` does: a pass without gradients casts each weight once."""
    from molfun.nn import bf16

    with torch.autocast("cpu", torch.bfloat16), bf16.cast_once():
        yield


def pass_of(
    backbone: Any,
    batch: Any,
    case: Case,
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> harness.Measure:
    """Return a forward pass in the precision of `cast`, or a step if the case has one."""
    from molfun.backbones.splitting import frozen_blocks

    def forward() -> float:
        with torch.no_grad(), cast():
            return float(backbone(batch).single.norm())

    state, first = None, frozen_blocks(backbone)
    if case.cached:
        with torch.no_grad():
            state = backbone.run_prefix(batch, first)

    def step() -> float:
        with cast():
            if state is None:
                output = backbone(batch)
            else:
                output = backbone.run_suffix(state, first, outputs=("single",))
        loss = output.single.square().sum()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in backbone.parameters() if p.grad is not None])
        for parameter in backbone.parameters():
            parameter.grad = None
        return float(norm.norm())

    return forward if case.mode == "forward" else step


def _block(backbone: Any, case: Case) -> tuple[harness.Measure, harness.Measure]:
    block = backbone.blocks()[0]
    config = backbone.model.config.evoformer_stack
    generator = torch.Generator().manual_seed(0)
    n, rows = case.length, case.rows + 1
    msa = torch.randn(1, rows, n, config.c_m, generator=generator)
    pair = torch.randn(1, n, n, config.c_z, generator=generator)
    masks = {"msa_mask": torch.ones(1, rows, n), "pair_mask": torch.ones(1, n, n)}

    def run() -> float:
        with torch.no_grad(), in_bf16() if case.bf16 else nullcontext():
            out = block(msa.clone(), pair.clone(), inplace_safe=True, **masks)
        return float(out[1].norm())

    return run, run


def variants(
    mode: Mode, length: int, rows: int, *, checkpointing: bool, bf16: bool = False
) -> list[Variant]:
    """Return the rows of a table, stock first and bfloat16 last."""

    def case(kernels: Any, *, half: bool = False) -> Case:
        cached = mode == "partial" and kernels == "fast"
        return Case(mode, length, rows, kernels, checkpointing, cached, bf16=half)

    kept = {"MOLFUN_ALLOCATOR": "keep"}
    found = [
        Variant("stock", case("stock"), {"MOLFUN_ALLOCATOR": "system"}),
        Variant("stock, buffers kept", case("stock"), kept),
        Variant("fast", case("fast"), kept),
    ]
    if bf16:
        found += [
            Variant("stock, autocast", case("stock", half=True), kept),
            Variant("fast, bf16", case("fast", half=True), kept),
        ]
    return found


def judge(title: str, results: list[harness.Result]) -> None:
    """Print whether the bounds of a table hold, in each precision."""
    in_float32 = [r for r in results if r.label in ("stock", "stock, buffers kept", "fast")]
    harness.judge(title, in_float32, [Bound("fast", "stock", 1.1)], agree=1e-3)
    if len(results) > len(in_float32):
        bounds = [Bound("fast, bf16", of, 1.1) for of in ("fast", "stock, autocast")]
        harness.judge(f"{title}, bf16", results, bounds, agree=5e-2)


def print_errors(length: int) -> None:
    """Print the relative errors of a pass and a step, against float64."""
    given: dict[str, Any] = {"length": length, "rows": 1, "checkpointing": False}
    found = {
        "float64": measured_outputs(Case("lora", kernels="stock", **given), double=True),
        "stock": measured_outputs(Case("lora", kernels="stock", **given)),
        "fast": measured_outputs(Case("lora", kernels="fast", **given)),
        "stock, autocast": measured_outputs(Case("lora", kernels="stock", bf16=True, **given)),
        "fast, bf16": measured_outputs(Case("lora", kernels="fast", bf16=True, **given)),
    }
    exact = found.pop("float64")
    print(f"\nRelative errors against float64, {length} residues")
    print(f"  {'':<18}" + "".join(f"{name:>14}" for name in exact))
    for label, own in found.items():
        errors = [float((own[k] - exact[k]).norm() / exact[k].norm()) for k in exact]
        print(f"  {label:<18}" + "".join(f"{error:>14.1e}" for error in errors))


def measured_outputs(case: Case, *, double: bool = False) -> dict[str, torch.Tensor]:
    """Return the outputs of a pass, its loss and the gradient of the adapters, in float64."""
    torch.manual_seed(0)
    model = model_of(case)
    backbone, batch = model.backbone, batch_of(model, case)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:  # adapters that do something
            parameter.data.normal_(std=0.02, generator=generator)
    if double:
        backbone.double()
        batch = torch.utils._pytree.tree_map(
            lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t, batch
        )
    with torch.no_grad(), in_bf16() if case.bf16 else nullcontext():
        passed = backbone(batch, outputs=("single", "pair", "structure"))
    with in_bf16() if case.bf16 else nullcontext():
        single = backbone(batch).single
    loss = single.double().square().mean()
    loss.backward()
    grads = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
    atoms = passed.structure["positions"].double()[-1]
    return {
        "single": passed.single.double(),
        "pair": passed.pair.double(),
        "distances": torch.cdist(atoms[..., 1, :], atoms[..., 1, :]),
        "loss": loss.detach(),
        "gradient": torch.cat(grads).double(),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["forward", "lora"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="Rows in bfloat16 as well.")
    parser.add_argument("--errors", action="store_true", help="Errors, and no times.")
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--quick", action="store_true", help="One block at 32 and 64 residues.")
    args = parser.parse_args()
    if args.quick:
        args.modes, args.lengths, args.rows = ["block"], [32, 64], [1]
    about = harness.machine(args.threads)
    print(about)
    if args.errors:
        torch.set_num_threads(args.threads)
        for length in args.lengths:
            print_errors(length)
        return
    for mode in args.modes:
        for length in args.lengths:
            for rows in args.rows:
                chosen = variants(
                    mode, length, rows, checkpointing=args.checkpointing, bf16=args.bf16
                )
                results = harness.compare(
                    chosen,
                    prepare,
                    rounds=args.rounds,
                    threads=args.threads,
                    apart=mode in ("lora", "full"),  # stock steps hold ten times the weights
                )
                title = f"{mode}, {length} residues, {rows} MSA row(s)"
                harness.show(title, results, value="norm")
                harness.record(args.history, "openfold_kernels", title, results, about)
                judge(title, results)
    harness.finish()


if __name__ == "__main__":
    main()
