r"""Show that AlphaFold's losses on coordinates are learned: by heart, at real width, and beyond.

    python benchmarks/structure_learning.py overfit --mmcifs ../shared/data/openfold/mmcifs
    python benchmarks/structure_learning.py wide --mmcifs DIR --blocks 48 --steps 200
    python benchmarks/structure_learning.py general --pdbs ../shared/data/ppi_affinity/pdbs \\
        --table ../shared/data/ppi_affinity/affinity.csv --seeds 0 1 2

``overfit`` trains the tiny model on crops of three structures and scores the files that it folds.
``wide`` trains model_1_ptm (random weights) on one crop until FAPE is a tenth of its first value.
``general`` trains the tiny model on the training part of a table and measures FAPE and distogram
loss on its validation part, next to those of the untrained model and of distances by separation
along the chain. ``--without TERM`` leaves a term of the loss out. All start from random weights.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from molfun import MolfunStructureModel
from molfun.data import StructureDataset, read_structure
from molfun.protein import CA, Protein
from molfun.sample import Sample
from molfun.training import Callback, FullFinetune

OVERFIT = ("1aki", "4zey", "2q2k")
BINS = np.linspace(2.3125, 21.6875, 63)
"""Edges of the distogram, in angstrom."""
SHOWN = ("lddt_ca", "rmsd", "fape_loss", "distogram_loss", "supervised_chi_loss")
FARTHEST = 32
"""Separation along the chain from which all pairs count as one; pairs of chains are another."""


class Curve(Callback):
    """Measure the samples in every `each`-th epoch, and print a line."""

    def __init__(self, model: MolfunStructureModel, samples: Sequence[Sample], each: int) -> None:
        self.model, self.samples, self.each = model, samples, each
        self.start = time.perf_counter()
        self.measured: dict[str, float] = {}

    def on_epoch_end(self, row: Any, improved: bool) -> None:  # noqa: ARG002
        """Print a line."""
        if row["epoch"] % self.each:
            return
        self.measured = measured(self.model, self.samples)
        shown = {"train_loss": row["train_loss"]} | {k: self.measured[k] for k in SHOWN}
        seconds = time.perf_counter() - self.start
        print(f"  {row['epoch']:>5}{seconds:7.0f} s {rounded(shown)}", flush=True)


def samples_of(paths: Sequence[Path], length: int) -> list[Sample]:
    """Return crops as samples and labels; a structure without resolution counts as 2 angstrom."""
    found = []
    for path in paths:
        protein = read_structure(path)
        protein = replace(protein.crop(length, "contiguous"), resolution=protein.resolution or 2.0)
        found.append(Sample(id=path.stem, protein=protein, target=protein))
    return found


def model_of(
    preset: str, *, seed: int, blocks: int | None = None, **task: Any
) -> MolfunStructureModel:
    """Return a model of random weights without dropout, which hinders learning by heart."""
    from molfun.backbones.openfold import _shims, presets

    _shims.prepare()  # before openfold is imported
    _, config = presets.resolve_config(preset)
    model = config.model
    with config.unlocked():
        for stack in (
            model.evoformer_stack,
            model.extra_msa.extra_msa_stack,
            model.template.template_pair_stack,
        ):
            for name in ("msa_dropout", "pair_dropout", "dropout_rate"):
                if name in stack:
                    stack[name] = 0.0
        model.structure_module.dropout_rate = 0.0
        if blocks is not None:
            model.evoformer_stack.no_blocks = blocks
    return MolfunStructureModel(
        "openfold", config=config, head="structure", seed=seed, task_config=task
    )


def strategy(lr: float) -> FullFinetune:
    """Return full training at one rate for all layers."""
    return FullFinetune(
        lr=lr, lr_head=lr, lr_embedder=lr, layer_lr_decay=1.0, warmup_steps=20, weight_decay=0.0,
        grad_clip=1.0,
    )  # fmt: skip


def overfit(args: argparse.Namespace) -> None:
    """Learn three crops by heart, fold them, and score the written files."""
    from molfun.structures.scoring.score import score

    samples = samples_of([args.mmcifs / f"{name}.cif" for name in OVERFIT], args.length)
    model = model_of("tiny", seed=args.seeds[0], **weights(args))
    learn(model, samples, samples, args)
    print("measured by the model:", rounded(model.evaluate(samples)))
    with tempfile.TemporaryDirectory() as made:
        folder = args.output or Path(made) / "folds"
        model.predict(samples, structures=folder)
        for sample in samples:
            written = read_structure(folder / f"{sample.id}.cif")
            print(f"  {sample.id}, by the model:", rounded(model.evaluate([sample])))
            print(f"  {sample.id}, from its file:", rounded(score(written, sample.target).values))


def wide(args: argparse.Namespace) -> None:
    """Learn one crop at real width until FAPE is a tenth of its first value."""
    samples = samples_of([args.mmcifs / f"{OVERFIT[0]}.cif"], args.length)
    model = model_of("model_1_ptm", seed=args.seeds[0], blocks=args.blocks, **weights(args))
    first = model.evaluate(samples)["fape_loss"]
    print(f"FAPE before: {first:.3f}")

    class Until(Curve):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            super().on_epoch_end(row, improved)
            if self.measured.get("fape_loss", first) <= first / 10:
                print(f"a tenth after {row['steps']} steps")
                raise SystemExit

    learn(model, samples, samples, args, Until)
    print("not a tenth within the given steps")


def general(args: argparse.Namespace) -> None:
    """Train on one part of a table, and measure on another that is disjoint by its clusters."""
    data = StructureDataset.from_folder(
        args.table, pdb_dir=args.pdbs, max_length=args.length, crop="contiguous", resolution=2.0
    )
    part = data.metadata["split"].to_numpy()
    train = data.subset(np.flatnonzero(part == "train"))
    val = draws(data.subset(np.flatnonzero(part != "train")), times=3)
    print(
        f"{len(train)} training structures, {len(val)} crops of {args.length} residues of the "
        f"{len(data) - len(train)} others"
    )
    print(f"distogram loss of distances by separation: {by_separation(draws(train, 10), val):.3f}")
    for seed in args.seeds:
        model = model_of("tiny", seed=seed, **weights(args))
        before = measured(model, val)
        learn(model, train.random_crops("contiguous"), val, args)
        after = measured(model, val)
        for name in SHOWN:
            print(f"seed {seed}, {name}: {before[name]:.3f} -> {after[name]:.3f}")


def measured(model: MolfunStructureModel, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the metrics with all terms of the loss, also one that is left out of the training."""
    task: Any = model.task
    weights = dict(task.weights)
    task.weights.update({name: 1.0 for name, weight in weights.items() if not weight})
    try:
        return model.evaluate(samples)
    finally:
        task.weights.update(weights)


def learn(
    model: MolfunStructureModel,
    train: Any,
    measured: Sequence[Sample],
    args: argparse.Namespace,
    curve: type[Curve] = Curve,
) -> None:
    """Train all weights, without a look at other samples than those of training."""
    loader = DataLoader(train, batch_size=args.batch, shuffle=True, collate_fn=list)
    model.fit(
        loader, strategy=strategy(args.lr), epochs=args.steps,
        callbacks=[curve(model, measured, args.each)],
    )  # fmt: skip


def draws(data: StructureDataset, times: int) -> list[Sample]:
    """Return several crops of each structure, the same ones for each run."""
    drawn, found = data.random_crops("contiguous"), []
    for turn, place in itertools.product(range(times), range(len(data))):
        torch.manual_seed(1000 * turn + place)
        sample = drawn[place]
        found.append(replace(sample, id=f"{sample.id}_{turn}", drawn=False))
    return found


def by_separation(train: Sequence[Sample], val: Sequence[Sample]) -> float:
    """Return the cross entropy of distances whose distribution follows from the separation."""
    counts = np.ones((FARTHEST + 2, len(BINS) + 1))
    for sample in train:
        np.add.at(counts, _binned(sample.protein), 1)
    log = np.log(counts / counts.sum(-1, keepdims=True))
    return float(np.mean([-log[_binned(sample.protein)].mean() for sample in val]))


def _binned(protein: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the separation and the bin of the C-beta distance of every known pair."""
    places, known = _beta(protein)
    rows = np.flatnonzero(known)
    distance = np.linalg.norm(places[rows, None] - places[None, rows], axis=-1)
    apart = np.abs(protein.residue_index[rows, None] - protein.residue_index[None, rows])
    same = protein.chain_index[rows, None] == protein.chain_index[None, rows]
    kind = np.where(same, np.minimum(apart, FARTHEST), FARTHEST + 1)
    return kind.ravel(), np.digitize(distance, BINS).ravel()


def _beta(protein: Protein) -> tuple[np.ndarray, np.ndarray]:
    """Return the C-beta atoms, CA for glycine, and whether they are known."""
    glycine = np.array([letter == "G" for letter in protein.sequence])
    atom = np.where(glycine, CA, 3)
    rows = np.arange(len(protein))
    return protein.atom_positions[rows, atom], protein.atom_mask[rows, atom] > 0


def weights(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the task: a term that is left out, and the share that is clamped."""
    left_out = {args.without: 0.0} if args.without else {}
    return {**left_out, "clamped_fape": args.clamped}


def rounded(values: Any) -> dict[str, float]:
    """Return numbers with three decimals."""
    return {name: round(float(value), 3) for name, value in values.items()}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overfit", "wide", "general"))
    parser.add_argument("--mmcifs", type=Path)
    parser.add_argument("--pdbs", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--length", type=int, help="residues; 64, or 60 for wide")
    parser.add_argument("--steps", type=int, help="epochs; 2500, 300 or 10")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, help="folder for the structures of overfit")
    parser.add_argument("--without", metavar="TERM")
    parser.add_argument("--batch", type=int, default=1, help="structures of a step")
    parser.add_argument("--clamped", type=float, default=0.9, help="share of FAPE that is clamped")
    parser.add_argument("--each", type=int, default=100, help="epochs between printed lines")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    usual = {"overfit": (64, 2500), "wide": (60, 300), "general": (64, 10)}[args.what]
    args.length, args.steps = args.length or usual[0], args.steps or usual[1]
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    {"overfit": overfit, "wide": wide, "general": general}[args.what](args)


if __name__ == "__main__":
    main()
