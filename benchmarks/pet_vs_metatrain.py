"""Compare fine-tuning of PET by Molfun and by ``mtt train``, from one checkpoint on equal data.

    python benchmarks/pet_vs_metatrain.py --data ../shared/data/atomistic
    python benchmarks/pet_vs_metatrain.py --data ../shared/data/atomistic --quick
    python benchmarks/pet_vs_metatrain.py --data ... --default-size --pretraining 1 --epochs 10

A small PET is pre-trained on QM9 molecules and fine-tuned on ethanol (70 train, 10 validation, 20
test), both labelled with energies and forces by ASE's EMT. That potential is crude, but it labels
both sets consistently and at no cost; the numbers say nothing about real chemistry. Both programs
get the same optimizer (Adam), learning-rate schedule (warm-up, cosine to 0), clipping, loss, batch
size and number of epochs. Both rotate structures at random, and both return the weights of the
best validation epoch. metatrain's LoRA trains adapters only; Molfun's is shown with and without the
heads. Errors are on the test set, the median of the seeds with the range. Seconds are CPU time per
epoch with one thread; for metatrain, from the difference of a long and a short run.

With ``--transfer`` ethanol has another energy: 1.1 times the first, plus a constant per element.
Both programs add an energy that inherits the head of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import harness
import numpy as np

HYPERS: dict[str, Any] = {
    "cutoff": 4.5, "d_pet": 32, "d_node": 64, "d_head": 32, "d_feedforward": 64, "num_heads": 4,
    "num_attention_layers": 1, "num_gnn_layers": 2,
}  # fmt: skip
RANK, ALPHA, LR, BATCH, WARMUP = 4, 8.0, 1e-3, 10, 0.1
SCRATCH = "from scratch"
HEADS = ["node_heads", "edge_heads"]
LAST = ["node_last_layers", "edge_last_layers"]


def labelled(path: Path, n: int, *, rattle: float, seed: int) -> list[Any]:
    """Return `n` structures of H, C, N and O from a file, displaced at random, with EMT labels."""
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import read

    frames = []
    for i, atoms in enumerate(read(path, ":")):
        if set(atoms.numbers) <= {1, 6, 7, 8}:
            for k in range(n // 100 + 1):
                moved = atoms.copy()
                moved.info, moved.arrays = (
                    {},
                    {name: moved.arrays[name] for name in ("numbers", "positions")},
                )
                if rattle:
                    moved.rattle(rattle, seed=seed + 1000 * k + i)
                frames.append(moved)
    frames = frames[:n]
    for atoms in frames:
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return frames


def other_energy(atoms: Any) -> None:
    """Replace the labels by those of a made-up second method: 10 % more, plus element constants."""
    from ase.calculators.singlepoint import SinglePointCalculator

    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    shift = sum({1: -13.0, 6: -1029.0, 8: -2041.0}[int(n)] for n in atoms.numbers)
    atoms.calc = SinglePointCalculator(atoms, energy=1.1 * energy + shift, forces=1.1 * forces)


# --- Molfun --------------------------------------------------------------------------------------


def strategy(name: str) -> Any:
    """Return a strategy with one learning rate for all weights."""
    from molfun import FullFinetune, HeadOnlyFinetune, LoRAFinetune, PartialFinetune

    shared: dict[str, Any] = {
        "optimizer": "adam", "weight_decay": 0.0, "scheduler": "cosine", "warmup_ratio": WARMUP,
        "min_lr_ratio": 0.0, "grad_clip": 1.0, "ema_decay": 0.0,
    }  # fmt: skip
    if name == "heads":
        return HeadOnlyFinetune(lr=LR, **shared)
    if name.startswith("lora"):
        return LoRAFinetune(rank=RANK, alpha=ALPHA, lr_lora=LR, lr_head=LR, **shared)
    if name == "partial":
        return PartialFinetune(unfreeze_last_n=1, lr_trunk=LR, lr_head=LR, **shared)
    return FullFinetune(lr=LR, lr_head=LR, lr_embedder=LR, layer_lr_decay=1.0, **shared)


def molfun(
    name: str,
    weights: Path | None,
    sets: tuple[list[Any], ...],
    *,
    epochs: int,
    seed: int,
    target: str = "energy",
    inherit: bool = False,
) -> tuple[dict[str, float], float]:
    """Train with Molfun; return test errors and CPU seconds per epoch."""
    import torch
    from torch.utils.data import DataLoader

    from molfun import MolfunStructureModel
    from molfun.data import AtomsDataset
    from molfun.training import Callback

    class Clock(Callback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.process_time())

    torch.set_num_threads(1)
    clock: list[float] = []
    config = {"config": HYPERS} if weights is None else {"weights": weights, "trust": True}
    chosen: dict[str, Any] = {"modules": []} if name == "lora, no heads" else {}
    if target != "energy" and not inherit:
        chosen["target"] = target
    model = MolfunStructureModel(
        "pet", head="energy", head_config=chosen, device="cpu", seed=seed, **config
    )
    train, val, test = (AtomsDataset.from_atoms(frames) for frames in sets)
    if inherit:
        model.add_target(target, inherit="energy")
    if name != "zero-shot":
        loader = DataLoader(train, batch_size=BATCH, shuffle=True, collate_fn=train.collate_fn)
        model.fit(
            loader, val, strategy=strategy(name), epochs=epochs, seed=seed,
            callbacks=[Clock()],
        )  # fmt: skip
    laps = np.diff(clock)
    return model.evaluate(test), float(np.median(laps)) if len(laps) else float("nan")


# --- metatrain -----------------------------------------------------------------------------------


def options(
    name: str, weights: Path | None, folder: Path, *, epochs: int, seed: int, target: str = "energy"
) -> dict[str, Any]:
    """Return the options file of ``mtt train``."""
    training: dict[str, Any] = {
        "num_epochs": epochs, "batch_size": BATCH, "learning_rate": LR,
        "warmup_fraction": WARMUP, "grad_clip_norm": 1.0, "num_workers": 0, "log_interval": 1,
        "best_model_metric": "loss",
    }  # fmt: skip
    config: dict[str, Any] = {}
    method = "lora" if name.startswith("lora") else name
    if method == "lora":
        config = {"alpha": ALPHA, "rank": RANK}
    if method == "heads":
        config = {"head_modules": HEADS, "last_layer_modules": LAST}
    if weights is not None:
        training["finetune"] = {"method": method, "read_from": str(weights), "config": config}
        if target != "energy":
            training["finetune"]["inherit_heads"] = {target: "energy"}
    sets = {
        f"{part}_set": {
            "systems": {"read_from": str(folder / f"{file}.xyz"), "length_unit": "angstrom"},
            "targets": {
                target: {
                    "quantity": "energy", "key": "energy", "unit": "eV",
                    "forces": {"key": "forces"}, "stress": False, "virial": False,
                }
            },
        }
        for part, file in (("training", "train"), ("validation", "val"), ("test", "test"))
    }  # fmt: skip
    return {
        "seed": seed, "device": "cpu",
        "architecture": {"name": "pet", "model": HYPERS, "training": training}, **sets,
    }  # fmt: skip


def metatrain(
    name: str, weights: Path | None, folder: Path, *, epochs: int, seed: int, target: str = "energy"
) -> tuple[Path, float]:
    """Run ``mtt train``; return its checkpoint and the CPU seconds of the whole process."""
    run = Path(tempfile.mkdtemp(dir=folder))
    # every JSON document is YAML
    (run / "options.yaml").write_text(
        json.dumps(options(name, weights, folder, epochs=epochs, seed=seed, target=target))
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mtt")), "train", "options.yaml"],
        cwd=run, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"mtt train failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return run / "model.ckpt", seconds


# --- table ---------------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    """Return median and range as text."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def pretrained(frames: list[Any], folder: Path, epochs: int) -> Path:
    """Train a PET from random weights, and write it as a checkpoint of metatrain."""
    import torch
    from torch.utils.data import DataLoader

    from molfun import FullFinetune, MolfunStructureModel
    from molfun.backbones.pet.weights import write_checkpoint
    from molfun.data import AtomsDataset

    torch.set_num_threads(1)
    model = MolfunStructureModel("pet", config=HYPERS, head="energy", device="cpu")
    train, val = AtomsDataset.from_atoms(frames[:-20]), AtomsDataset.from_atoms(frames[-20:])
    loader = DataLoader(train, batch_size=16, shuffle=True, collate_fn=train.collate_fn)
    course = FullFinetune(
        lr=2e-3, lr_head=2e-3, lr_embedder=2e-3, layer_lr_decay=1.0, optimizer="adam",
        weight_decay=0.0, warmup_ratio=WARMUP,
    )  # fmt: skip
    model.fit(loader, val, strategy=course, epochs=epochs)
    path = folder / "pretrained.ckpt"
    write_checkpoint(model.backbone.stock_model(), path)
    print(f"Pre-training: {len(train)} molecules, {epochs} epochs, on 20 others:", end=" ")
    print({k: round(v, 1) for k, v in model.evaluate(val).items()})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the xyz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pretraining", type=int, default=40, help="epochs")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument(
        "--default-size", action="store_true", help="metatrain's own size, 2.9 M parameters"
    )
    parser.add_argument("--transfer", action="store_true", help="to another energy of ethanol")
    args = parser.parse_args()
    if args.default_size:
        HYPERS.clear()
    if args.quick:
        args.seeds, args.epochs, args.pretraining = 1, 3, 3
    warnings.simplefilter("ignore")
    print(harness.machine(1))
    with tempfile.TemporaryDirectory() as name:
        compare(args, Path(name))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Measure and print all rows."""
    from ase.io import write

    qm9 = labelled(args.data / "qm9_reduced_100.xyz", 200, rattle=0.05, seed=0)
    ethanol = labelled(args.data / "ethanol_reduced_100.xyz", 100, rattle=0.0, seed=0)
    order = np.random.default_rng(0).permutation(len(ethanol))
    parts = [[ethanol[i] for i in order[a:b]] for a, b in ((0, 70), (70, 80), (80, 100))]
    target = "energy/b" if args.transfer else "energy"
    if args.transfer:
        for atoms in ethanol:
            other_energy(atoms)
    for file, frames in zip(("train", "val", "test"), parts, strict=True):
        write(folder / f"{file}.xyz", frames, format="extxyz")
    weights = pretrained(qm9, folder, args.pretraining)
    print(f"\nEthanol, {args.epochs} epochs, {args.seeds} seed(s)")
    print(f"{'':<28}{'energy MAE meV/atom':>24}{'forces MAE meV/A':>24}{'CPU s per epoch':>18}")
    rows = ("zero-shot", "heads", "lora", "lora, no heads", "partial", "full", SCRATCH)
    if args.transfer:
        rows = ("heads", "lora", "partial", "full")
    for row in rows:
        start = None if row == SCRATCH else weights
        found = [
            molfun(
                row,
                start,
                tuple(parts),
                epochs=args.epochs,
                seed=seed,
                target=target,
                inherit=args.transfer,
            )
            for seed in range(1 if row == "zero-shot" else args.seeds)
        ]
        show(f"molfun {row}", [f for f, _ in found], [s for _, s in found])
    for row in ("heads", "lora", "full") if args.transfer else ("heads", "lora", "full", SCRATCH):
        start = None if row == SCRATCH else weights
        _, short = metatrain(row, start, folder, epochs=1, seed=0, target=target)
        errors, seconds = [], []
        for seed in range(args.seeds):
            checkpoint, long = metatrain(
                row, start, folder, epochs=args.epochs, seed=seed, target=target
            )
            found, _ = molfun(
                "zero-shot", checkpoint, tuple(parts), epochs=0, seed=seed, target=target
            )
            errors.append(found)
            seconds.append((long - short) / (args.epochs - 1))
        show(f"mtt train {row}", errors, seconds)


def show(name: str, errors: list[dict[str, float]], seconds: list[float]) -> None:
    """Print one row."""
    energies, forces = ([e[f"{k}_mae"] for e in errors] for k in ("energy", "forces"))
    print(
        f"{name:<28}{spread(energies):>24}{spread(forces):>24}{statistics.median(seconds):>18.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
