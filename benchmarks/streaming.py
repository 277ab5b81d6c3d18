"""Pre-train on ten million sequences in a file, next to Hugging Face's datasets and Trainer.

    python benchmarks/streaming.py                  # 10 million sequences, 3 GB in --folder
    python benchmarks/streaming.py --quick

Sequences are random with log-normal lengths (median 230, 30 to 1,000), written to an Arrow file
that both read. A tiny ESM-2 with random weights and the same sizes learns to fill in masked
residues, in shuffled batches of the same size: both crop to 256 residues, select 15 % and take
AdamW. Each variant has a process of its own. Shown are seconds until the data is open, until the
first optimizer step (all checks, a validation set and the first order are made before), and
sequences per second after it, by CPU seconds of one thread and by wall; and memory over that after
the imports: what is the process's own (RssAnon), and the peak of all that is resident (VmHWM), in
which pages of mapped files count as well. A row of Molfun on a hundredth of the sequences shows
what of it grows with the file. Molfun is then killed (SIGKILL) in the middle, resumed, and compared
bit by bit with a run that was not. The variant of Hugging Face needs ``pip install datasets
transformers``; --packages adds a folder of packages for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, held, hold, machine

LAYERS, WIDTH, HEADS, CROP = 2, 32, 4, 256
BATCH = 16
SIZES = {"full": (10_000_000, 1000), "quick": (50_000, 60)}
"""Sequences, and optimizer steps."""
ROWS = 100_000


def write(path: Path, n: int) -> None:
    """Write random sequences to an Arrow file."""
    import pyarrow

    rng, letters = np.random.default_rng(0), np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    schema = pyarrow.schema([("sequence", pyarrow.string())])
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as file:
        for start in range(0, n, ROWS):
            k = min(ROWS, n - start)
            lengths = np.clip(np.exp(rng.normal(math.log(230), 0.6, k)), 30, 1000).astype(np.int32)
            ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            raw = letters[rng.integers(0, 20, int(ends[-1]), dtype=np.uint8)]
            buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(raw)]
            column = pyarrow.Array.from_buffers(pyarrow.string(), k, buffers)
            file.write_batch(pyarrow.record_batch([column], schema=schema))


class Clock:
    """Seconds since a beginning, and at which of them steps were taken."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.loaded = {name: held(name) for name in ("RssAnon", "VmHWM")}
        self.opened = 0.0
        self.steps: list[float] = []
        self.cpu: list[float] = []
        self.anon = 0.0

    def note_open(self) -> None:
        self.opened = time.perf_counter() - self.start

    def note_step(self) -> None:
        self.steps.append(time.perf_counter() - self.start)
        self.cpu.append(time.process_time())
        self.anon = max(self.anon, held("RssAnon"))

    def report(self, **more: float) -> None:
        """Print what was measured, for the process that started this one."""
        steps, cpu = self.steps, self.cpu
        found = {
            "opened": self.opened,
            "first": steps[0],
            "wall": BATCH * (len(steps) - 1) / (steps[-1] - steps[0]),
            "rate": BATCH * (len(steps) - 1) / (cpu[-1] - cpu[0]),
            "anon": self.anon - self.loaded["RssAnon"],
            "peak": held("VmHWM") - self.loaded["VmHWM"],
            **more,
        }
        print("RESULT", json.dumps(found), flush=True)


def run_molfun(args: argparse.Namespace) -> None:
    """Pre-train with Molfun; with --kill-at the process kills itself after so many steps."""
    import lightning_fabric  # noqa: F401  # as the Trainer below, before the clock starts
    import torch
    from torch.utils.data import DataLoader

    from molfun import DataSplitter, MolfunStructureModel, SequenceDataset
    from molfun.strategies.full import FullFinetune
    from molfun.training import Callback

    class Steps(Callback):
        def on_step_end(self, report: Any) -> None:
            clock.note_step()
            if report.step == args.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    model = MolfunStructureModel("esm2", config=f"esm2_t{LAYERS}_d{WIDTH}_h{HEADS}", device="cpu")
    clock = Clock()
    data = SequenceDataset.from_arrow(args.data, max_length=CROP)
    clock.note_open()
    train, val, _ = DataSplitter.random(data, val_frac=200 / len(data), test_frac=0.0)
    loader = DataLoader(train, batch_size=BATCH, shuffle=True, collate_fn=train.collate_fn)
    history = model.pretrain(
        loader,
        val,
        strategy=FullFinetune(lr=4e-4, lr_head=4e-4, lr_embedder=4e-4, layer_lr_decay=1.0),
        max_steps=args.steps,
        output_dir=args.output,
        resume=args.resume,
        save_every_steps=max(1, args.steps // 10),
        callbacks=[Steps()],
    )
    weights = torch.cat([p.detach().flatten() for p in model.backbone.parameters()]).double()
    clock.report(loss=history[-1]["train_loss"], weights=float((weights**2).sum()))


def run_hugging_face(args: argparse.Namespace) -> None:
    """Pre-train with datasets and the Trainer of transformers."""
    sys.path += args.packages
    import datasets
    from transformers import (
        DataCollatorForLanguageModeling,
        EsmConfig,
        EsmForMaskedLM,
        EsmTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.note_step()

    vocabulary = Path(args.output) / "vocab.txt"
    vocabulary.parent.mkdir(parents=True)
    words = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>"]
    words.append("<mask>")
    vocabulary.write_text("\n".join(words) + "\n")
    tokenizer = EsmTokenizer(str(vocabulary))
    config = EsmConfig(
        vocab_size=len(words), mask_token_id=32, pad_token_id=1, hidden_size=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, token_dropout=True,
        position_embedding_type="rotary", emb_layer_norm_before=False,
    )  # fmt: skip
    model = EsmForMaskedLM(config)
    clock = Clock()
    data = datasets.Dataset.from_file(str(args.data))
    clock.note_open()
    parts = data.train_test_split(test_size=200, seed=0)
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    def collate(rows: list[dict[str, str]]) -> Any:
        texts = [row["sequence"] for row in rows]
        found = tokenizer(texts, truncation=True, max_length=CROP + 2)
        return mask([{"input_ids": ids} for ids in found["input_ids"]])

    settings = TrainingArguments(
        output_dir=args.output, per_device_train_batch_size=BATCH, max_steps=args.steps,
        learning_rate=4e-4, report_to=[], save_steps=max(1, args.steps // 10), use_cpu=True,
        remove_unused_columns=False, logging_steps=args.steps, disable_tqdm=True, seed=0,
        dataloader_num_workers=0, max_grad_norm=1.0, weight_decay=0.01,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=settings, train_dataset=parts["train"], data_collator=collate,
        callbacks=[Steps()],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate(parts["test"])  # Molfun validates at the end as well
    clock.report()


PEER = "datasets + Trainer"
RUNS = {"molfun": run_molfun, PEER: run_hugging_face}


def started(variant: str, args: argparse.Namespace, output: Path, *more: str) -> dict[str, float]:
    """Run a variant in a process of its own; empty if it was killed."""
    command = [sys.executable, __file__, "--variant", variant, "--data", str(args.data)]
    command += ["--steps", str(args.steps), "--output", str(output), *more]
    command += ["--packages", *args.packages] if args.packages else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode == -signal.SIGKILL:
        return {}
    if done.returncode:
        raise SystemExit(f"{variant} ended with exit code {done.returncode}; its error is above.")
    found: dict[str, float] = json.loads(re.findall(r"RESULT (.*)", done.stdout)[-1])
    return found


def shown(label: str, row: dict[str, float]) -> dict[str, float]:
    """Print a row of the table, and return it."""
    print(
        f"  {label:<20}{row['opened']:>8.2f}{row['first']:>9.1f}{row['rate']:>9.0f}"
        f"{row['wall']:>9.0f}"
        f"{row['anon']:>9.0f}{row['peak']:>9.0f}",
        flush=True,
    )
    return row


def peer_is_there(packages: list[str]) -> bool:
    code = f"import sys; sys.path += {packages!r}; import datasets, transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return done.returncode == 0


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Measure all variants on one file, and kill and resume one."""
    title = f"{args.sequences:,} sequences ({args.data.stat().st_size / 2**20:,.0f} MB)"
    print(
        f"\n{title}, {args.steps} steps of {BATCH}\n  {'':<20}{'open s':>8}{'first s':>9}", end=""
    )
    print(f"{'seq/s':>9}{'by wall':>9}{'own MB':>9}{'peak MB':>9}")
    few = argparse.Namespace(**{**vars(args), "data": folder / "few.arrow"})
    write(few.data, args.sequences // 100)
    small = shown("molfun, 1 % of them", started("molfun", few, folder / "few"))
    found = {"molfun": shown("molfun", started("molfun", args, folder / "molfun"))}
    if peer_is_there(args.packages):
        found[PEER] = shown(PEER, started(PEER, args, folder / "peer"))
    else:
        print(f"  {PEER}: not installed (pip install datasets transformers)")
    ours = found["molfun"]
    assert not started("molfun", args, folder / "killed", "--kill-at", str(args.steps // 2 + 3)), (
        "it was to be killed"
    )
    resumed = started("molfun", args, folder / "killed", "--resume")
    apart = max(abs(ours[name] - resumed[name]) for name in ("loss", "weights"))
    hold(title, "difference of a killed and resumed run", apart, 0.0)
    hold(title, "seconds to open", ours["opened"], 10.0)
    # of a small file it is what the allocator happens to keep
    grown = max(0.0, ours["anon"] - small["anon"] - 100)
    hold(title, "own MB over 100, per million sequences", grown / (args.sequences / 1e6), 40.0)
    if PEER in found:
        hold(title, f"rate of {PEER} over that of Molfun", found[PEER]["rate"] / ours["rate"], 1.25)


def main() -> None:
    """Read the arguments and run, or be one variant."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50,000 sequences")
    parser.add_argument("--sequences", type=int, help="number of sequences")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--folder", help="folder for the file; by default a temporary one")
    parser.add_argument("--packages", nargs="*", default=[], help="folders of further packages")
    for name in ("--variant", "--data", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        RUNS[args.variant](args)
        return
    n, steps = SIZES["quick" if args.quick else "full"]
    args.sequences, args.steps = args.sequences or n, args.steps or steps
    print(machine(1))
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        args.data = folder / "sequences.arrow"
        start = time.perf_counter()
        write(args.data, args.sequences)
        print(f"Written in {time.perf_counter() - start:.0f} s")
        compare(args, folder)
    finally:
        shutil.rmtree(folder)
    finish()


if __name__ == "__main__":
    main()
