"""Time reading and featurising: structures and alignments (OpenFold), tokens (ESM-2), tables.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --quick --tables tokens

The files are synthetic: single chains with main chain and CB, one PDB and one mmCIF file each, and
alignments in which every fifth residue is changed. "openfold" is openfold's own ``DataPipeline``
and ``FeaturePipeline`` (with the shims that let it be imported). It pads every sample to the MSA
sizes of its config (512 and 5,120 rows), while Molfun lowers them to the rows of the sample; so
openfold is also shown with lowered sizes. Molfun runs the same pipeline after its own reader.
"Again" is a second pass over a data set, which keeps parsed structures in memory; the feature cache
is for samples with alignments.

"An epoch" trains the head of a tiny OpenFold without caches, on structures that are in memory
already. Its rows only differ in where these are featurised: in the training process, or in workers
of the loader.

Values: residues and amino-acid types in the features, sum of the residue tokens, mean of the
labels, loss of the epoch. Milliseconds per sample are printed below each table.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant

Kind = Literal["pdb", "cif", "alignments", "epoch", "tokens", "csv"]
NAMES: dict[str, str] = {
    "pdb": "OpenFold features from PDB files",
    "cif": "OpenFold features from mmCIF files",
    "alignments": "OpenFold features from alignments",
    "epoch": "An epoch of OpenFold by place of featurising",
    "tokens": "Tokens of ESM-2",
    "csv": "Table of sequences",
}
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ATOMS = {"N": (0, 0), "CA": (1.2, 0.8), "C": (2.4, 0), "O": (2.4, -1.2), "CB": (1.2, 2.3)}
BATCH = 8


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    kind: Kind
    how: str
    folder: Path
    n: int


def sequences(n: int, seed: int, *, length: int | None = None) -> list[str]:
    """Draw random proteins of one length, or of log-normal lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.full(n, length or 0)
    if length is None:
        lengths = np.clip(np.exp(rng.normal(np.log(250), 0.6, n)), 50, 1000).astype(int)
    return ["".join(rng.choice(list(LETTERS), k)) for k in lengths]


# --- files ---------------------------------------------------------------------------------------


def write_structures(folder: Path, texts: Sequence[str]) -> None:
    """Write a PDB and an mmCIF file for each sequence, and a table of labels."""
    for kind in ("pdb", "cif"):
        (folder / kind).mkdir(parents=True)
    for i, text in enumerate(texts):
        structure = chain_of(text)
        (folder / "pdb" / f"s{i}.pdb").write_text(structure.make_pdb_string())
        (folder / "cif" / f"s{i}.cif").write_text(mmcif_of(structure))
    lines = ["pdb_id,affinity", *(f"s{i},{i}" for i in range(len(texts)))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


def chain_of(text: str) -> Any:
    """Return a chain with all residues on a straight line, with sequence and entity."""
    import gemmi

    names = gemmi.expand_one_letter_sequence(text, gemmi.ResidueKind.AA)
    chain = gemmi.Chain("A")
    for i, name in enumerate(names):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(i + 1, " ")
        for atom_name, (x, y) in ATOMS.items():
            if (name, atom_name) != ("GLY", "CB"):
                atom = gemmi.Atom()
                atom.name, atom.element = atom_name, gemmi.Element(atom_name[0])
                atom.pos, atom.b_iso = gemmi.Position(3.8 * i % 500 + x, y, 0), 20.0
                residue.add_atom(atom)
        chain.add_residue(residue)
    structure, model = gemmi.Structure(), gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    structure.name = "demo"
    structure.setup_entities()
    structure.entities[0].full_sequence = names
    structure.assign_label_seq_id()
    return structure


def mmcif_of(structure: Any) -> str:
    """Return the text of an mmCIF file with the few items besides atoms that openfold requires."""
    document = structure.make_mmcif_document()
    block = document.sole_block()
    for row in block.find("_chem_comp.", ["type"]):
        row[0] = "'L-peptide linking'"
    block.set_pairs("_exptl.", {"entry_id": "demo", "method": "X-RAY DIFFRACTION"})
    released = {"ordinal": "1", "revision_date": "2020-01-01"}
    block.set_pairs("_pdbx_audit_revision_history.", released)
    return str(document.as_string())


def write_alignments(folder: Path, texts: Sequence[str], rows: int) -> None:
    """Write an alignment with `rows` rows for each structure."""
    rng = np.random.default_rng(1)
    for i, text in enumerate(texts):
        query = np.array(list(text))
        lines = [f">s{i}", text]
        for row in range(1, rows):
            drawn = rng.choice(list(LETTERS), len(query))
            other = np.where(rng.random(len(query)) < 0.2, drawn, query)
            lines += [f">row{row}", "".join(other)]
        place = folder / "alignments" / f"s{i}"
        place.mkdir(parents=True)
        (place / "hits.a3m").write_text("\n".join(lines) + "\n")


def write_table(path: Path, n: int) -> None:
    """Write a CSV table of sequences and labels."""
    rng = np.random.default_rng(2)
    block = "".join(rng.choice(list(LETTERS), 100_000))
    starts, lengths = rng.integers(0, 99_000, n), rng.integers(50, 500, n)
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("sequence", "target", "split"))
        for i, (a, k) in enumerate(zip(starts, lengths, strict=True)):
            writer.writerow((block[a : a + k], f"{i % 97 / 10:.1f}", "train"))


# --- OpenFold ------------------------------------------------------------------------------------


def signature(features: Sequence[Any]) -> float:
    """Return a number made of residues and their types, which padding does not change."""
    types = [f["aatype"][..., 0].double() for f in features]
    return sum(float((t + 1).mean()) + len(t) for t in types)


def openfold_features(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions for openfold alone, or for Molfun on openfold."""
    from molfun.backbones.openfold import OpenFoldBackbone

    backbone = OpenFoldBackbone("tiny")  # applies the shims; features do not depend on the width
    run = upstream(case) if case.how.startswith("openfold") else ours(case, backbone)
    return lambda: run(1), lambda: run(case.n)


def upstream(case: Case) -> Callable[[int], float]:
    """Return a function that runs openfold's DataPipeline and FeaturePipeline unchanged."""
    from openfold.config import model_config
    from openfold.data import mmcif_parsing
    from openfold.data.data_pipeline import DataPipeline
    from openfold.data.feature_pipeline import FeaturePipeline

    data = model_config("model_1_ptm").data
    data.common.max_recycling_iters = 0
    if case.how.endswith("lowered"):
        depth = len(next(case.folder.glob("alignments/s0/*")).read_text().splitlines()) // 2
        rows = depth if case.kind == "alignments" else 1
        clusters = min(data.predict.max_msa_clusters, rows)
        data.predict.max_msa_clusters = clusters
        data.predict.max_extra_msa = min(data.predict.max_extra_msa, max(rows - clusters, 1))
        data.predict.max_templates = 1
    pipeline, features = DataPipeline(template_featurizer=None), FeaturePipeline(data)
    empty = case.folder / "empty"
    empty.mkdir(exist_ok=True)

    def raw(i: int) -> Any:
        if case.kind == "cif":
            text = (case.folder / "cif" / f"s{i}.cif").read_text()
            parsed = mmcif_parsing.parse(file_id=f"s{i}", mmcif_string=text, catch_all_errors=False)
            return pipeline.process_mmcif(parsed.mmcif_object, str(empty), "A")
        place = case.folder / "alignments" / f"s{i}" if case.kind == "alignments" else empty
        return pipeline.process_pdb(str(case.folder / "pdb" / f"s{i}.pdb"), str(place), False, "A")

    def run(n: int) -> float:
        return signature([features.process_features(raw(i), mode="predict") for i in range(n)])

    return run


def ours(case: Case, backbone: Any) -> Callable[[int], float]:
    """Return a function that featurises a data set of files with Molfun."""
    from molfun import AffinityDataset
    from molfun.training.feature_cache import FeatureCache

    def dataset() -> Any:
        return AffinityDataset.from_csv(
            case.folder / "table.csv",
            case.folder / ("cif" if case.kind == "cif" else "pdb"),
            alignments_dir=case.folder / "alignments" if case.kind == "alignments" else None,
        )

    cache_dir = case.folder / "warm"
    if case.how.endswith("again") or case.how.endswith("warm"):
        kept = dataset().check()

        def run_again(n: int) -> float:
            cache = FeatureCache(backbone, cache_dir if case.how.endswith("warm") else None)
            return signature([cache.features(kept[i]) for i in range(n)])

        run_again(case.n)
        return run_again

    def run(n: int) -> float:
        data = dataset()
        with tempfile.TemporaryDirectory(dir=case.folder) as folder:
            cache = FeatureCache(backbone, Path(folder) if case.how.endswith("cold") else None)
            return signature([cache.features(data[i]) for i in range(n)])

    return run


def epoch(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions for an epoch, with features made here or in workers."""
    from torch.utils.data import DataLoader

    from molfun import AffinityDataset, HeadOnlyFinetune, MolfunStructureModel
    from molfun.backbones.openfold import OpenFoldBackbone

    OpenFoldBackbone.featurizes_in_workers = not case.how.endswith("load only")
    data = AffinityDataset.from_csv(case.folder / "table.csv", case.folder / "pdb").check()
    model = MolfunStructureModel("openfold", config="tiny", head="affinity", device="cpu")

    def run(n: int) -> float:
        loader = DataLoader(
            data.subset(range(n)),
            batch_size=2,
            collate_fn=data.collate_fn,
            num_workers=0 if case.how == "no workers" else 2,
        )
        # a rate near zero, so that every round has the same loss
        strategy = HeadOnlyFinetune(lr=1e-12)
        return float(model.fit(loader, strategy=strategy, epochs=1, cache="off")[-1]["train_loss"])

    return lambda: run(2), lambda: run(case.n)


# --- sequences -----------------------------------------------------------------------------------


def esm_tokens(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions for token batches: padded by fair-esm, packed by Molfun."""
    texts = sequences(case.n, 0)
    if case.how == "fair-esm":
        import esm

        convert = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()

        def tokens(part: Sequence[str]) -> torch.Tensor:
            return convert([("", t) for t in part])[2]
    else:
        from molfun import SequenceDataset
        from molfun.backbones.esm2 import ESM2Backbone

        backbone = ESM2Backbone("esm2_tiny")

        def tokens(part: Sequence[str]) -> torch.Tensor:
            batch = SequenceDataset.from_list(list(part))
            return backbone.collate([backbone.featurize(s) for s in batch])["tokens"]

    def run(n: int) -> float:
        total = 0
        for start in range(0, n, BATCH):
            found = tokens(texts[start : min(start + BATCH, n)])
            total += int(found[found > 3].sum())
        return float(total)

    return lambda: run(BATCH), lambda: run(case.n)


def read_table(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions for one table: without checks, in a plain loop, by Molfun."""
    path = case.folder / "sequences.csv"

    def pandas() -> float:
        import pandas as pd

        return float(pd.read_csv(path)["target"].mean())

    def loop() -> float:
        known, labels = set(LETTERS), []
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if not row["sequence"] or not known.issuperset(row["sequence"]):
                    raise ValueError(row)
                labels.append(float(row["target"]))
        return float(np.mean(labels))

    def molfun() -> float:
        from molfun import SequenceDataset

        return float(SequenceDataset.from_csv(path).targets.mean())

    def molfun_letters() -> float:
        from molfun import SequenceDataset
        from molfun.backbones.esm2 import ESM2Backbone

        data, backbone = SequenceDataset.from_csv(path), ESM2Backbone("esm2_tiny")
        for sample in data:
            backbone.check(sample)
        return float(data.targets.mean())

    run = {
        "pandas.read_csv, no checks": pandas,
        "csv and a plain loop of checks": loop,
        "molfun, rows checked": molfun,
        "molfun, every letter checked": molfun_letters,
    }[case.how]
    return run, run


# --- measuring -----------------------------------------------------------------------------------

ROWS: dict[str, tuple[str, ...]] = {
    "pdb": ("openfold", "openfold, sizes lowered", "molfun", "molfun, again"),
    "cif": ("openfold", "openfold, sizes lowered", "molfun", "molfun, again"),
    "alignments": (
        *("openfold", "openfold, sizes lowered", "molfun"),
        *("molfun, cache cold", "molfun, cache warm"),
    ),
    "epoch": ("no workers", "2 workers that load only", "2 workers that featurise"),
    "tokens": ("fair-esm", "molfun"),
    "csv": (
        *("pandas.read_csv, no checks", "csv and a plain loop of checks"),
        *("molfun, rows checked", "molfun, every letter checked"),
    ),
}


BOUNDS: dict[str, tuple[Bound, ...]] = {
    "pdb": (Bound("molfun", "openfold", 2.5), Bound("molfun, again", "molfun", 1.2)),
    "cif": (Bound("molfun", "openfold", 2.0), Bound("molfun, again", "molfun", 1.2)),
    "alignments": (
        Bound("molfun", "openfold", 1.5),
        Bound("molfun, cache warm", "openfold", 0.5),
        Bound("molfun, cache cold", "molfun", 2.0),
    ),
    # starting workers takes seconds of wall time, which few samples do not repay
    "epoch": (Bound("2 workers that featurise", "no workers", 1.5),),
    "tokens": (Bound("molfun", "fair-esm", 0.5),),
    "csv": (Bound("molfun, rows checked", "csv and a plain loop of checks", 3.0),),
}
"""Bounds on the rows of each table, for the small sizes too."""


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case; runs in the process of its row."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if case.kind in ("tokens", "epoch"):
        return esm_tokens(case) if case.kind == "tokens" else epoch(case)
    return read_table(case) if case.kind == "csv" else openfold_features(case)


def table(kind: Kind, folder: Path, args: argparse.Namespace, about: str) -> None:
    """Measure the variants in turns, and print the time per sample."""
    n = {"tokens": args.sequences, "csv": args.table_rows}.get(kind, args.structures)
    size = {
        "tokens": f"{n:,} sequences, batches of {BATCH}",
        "csv": f"{n:,} rows",
        "alignments": f"{n} of {args.length} residues and {args.rows} rows",
    }.get(kind, f"{n} of {args.length} residues")
    forks = kind == "epoch"
    variants = [Variant(how, Case(kind, how, folder, n), forks=forks) for how in ROWS[kind]]
    results = harness.compare(variants, prepare, rounds=args.rounds, threads=args.threads)
    title = f"{NAMES[kind]}, {size}"
    harness.show(title, results)
    harness.record(args.history, "data_loading", title, results, about)
    each = (f"{r.label} {r.wall / n * 1e3:.3g}" for r in results)
    print(f"  ms per sample: {'; '.join(each)}", flush=True)
    harness.judge(title, results, BOUNDS[kind])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--structures", type=int, default=16)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rows", type=int, default=512, help="rows of each alignment")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--table-rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--quick", action="store_true", help="few and small samples, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.structures, args.length, args.rows, args.rounds = 3, 60, 64, 2
        args.sequences, args.table_rows = 400, 10_000
    about = harness.machine(args.threads)
    print(about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = sequences(args.structures, 0, length=args.length)
        write_structures(folder, texts)
        write_alignments(folder, texts, args.rows)
        write_table(folder / "sequences.csv", args.table_rows)
        for kind in args.tables:
            table(kind, folder, args, about)
    harness.finish()


if __name__ == "__main__":
    main()
