"""Compare the logits of ESM-2 in Molfun, transformers and esm-cpp: speed, and error beside it.

    python -m venv esm-cpp && esm-cpp/bin/pip install esm-cpp==0.2.1
    python benchmarks/esm2_vs_cpp.py --python esm-cpp/bin/python --size 8M

esm-cpp wants an older NumPy, so that it runs in an environment of its own. All rows have the same
random weights and give the logits of every residue of the same random sequences of 60 to 249
residues. Rows take turns, a pass of all sequences each, in processes of their own; the table has
the median of residues per CPU second, the speed relative to the first row, and the error of the
logits relative to their size, against transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from esm2_vs_peers import NAMES
from safetensors.torch import save_file

from molfun import MolfunStructureModel
from molfun.backbones.esm2.presets import resolve
from molfun.models.precision import computing
from molfun.nn.allocator import keep_large_buffers
from molfun.sample import Sample

HERE = Path(__file__).parent
BATCH = 8
TOKENS = 4096
"""Residues of a batch of Molfun."""
REFERENCE = "transformers eager"


def written(folder: Path, size: str, texts: Sequence[str]) -> None:
    """Write a Hugging Face folder with random weights, and what esm-cpp reads."""
    from transformers import EsmConfig, EsmForMaskedLM, utils

    utils.logging.disable_progress_bar()
    sizes = resolve(NAMES[size])
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.attention_heads,
        intermediate_size=4 * sizes.embed_dim, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = EsmForMaskedLM(config)
    model.save_pretrained(folder / "hf")
    state = {n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.decoder.bias"}
    frequencies = state["esm.rotary_embeddings.inv_freq"]
    for block in range(sizes.num_layers):  # where older versions of transformers kept them
        place = f"esm.encoder.layer.{block}.attention.self.rotary_embeddings.inv_freq"
        state[place] = frequencies.clone()
    save_file(state, folder / "model.safetensors")
    (folder / "sequences.txt").write_text("\n".join(texts))


# A worker is this file again: it answers once when it is ready, and then once per line


def transformers_pass(folder: Path, texts: Sequence[str], attention: str) -> Callable[[], Any]:
    """Return a function that gives the logits of all residues, by padded batches in order."""
    from transformers import EsmForMaskedLM

    from molfun.backbones.language.alphabet import ESM

    model = EsmForMaskedLM.from_pretrained(folder / "hf", attn_implementation=attention).eval()
    rows = [torch.from_numpy(ESM.encode(text, name="x")) for text in texts]
    rows = [torch.cat([torch.tensor([0]), row, torch.tensor([2])]) for row in rows]

    def run() -> list[torch.Tensor]:
        found = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            tokens = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=1)
            logits = model(input_ids=tokens, attention_mask=(tokens != 1).long()).logits
            found += [one[1 : len(row) - 1] for one, row in zip(logits, some, strict=True)]
        return found

    return run


def molfun_pass(folder: Path, texts: Sequence[str], *, bf16: bool) -> Callable[[], Any]:
    """Return a function that gives the logits of all residues, by packed batches."""
    model = MolfunStructureModel("transformers", weights=folder / "hf", head=None, device="cpu")
    backbone: Any = model.eval().backbone
    rows = [backbone.featurize(Sample(id="x", sequence=text)) for text in texts]
    batches: list[list[Any]] = [[]]
    for row in rows:
        if sum(len(r["tokens"]) for r in batches[-1]) + len(row["tokens"]) > TOKENS:
            batches.append([])
        batches[-1].append(row)

    def run() -> list[torch.Tensor]:
        with computing(model, "bf16" if bf16 else "fp32"):
            collated = map(backbone.collate, filter(None, batches))
            return [backbone.token_logits(b, b["residues"]).float() for b in collated]

    return run


def work(folder: Path, kind: str, threads: int) -> None:
    """Run a pass for each line on standard input."""
    from transformers import utils

    logging.disable(logging.WARNING)
    utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    texts = (folder / "sequences.txt").read_text().split()
    if kind.startswith("molfun"):
        keep_large_buffers()
        run = molfun_pass(folder, texts, bf16=kind.endswith("bf16"))
    else:
        run = transformers_pass(folder, texts, kind)
    with torch.no_grad():
        np.save(folder / f"{kind}.npy", torch.cat(run()).numpy())
        print(json.dumps({"about": kind}), flush=True)
        for _ in sys.stdin:
            start = time.process_time()
            run()
            print(json.dumps({"cpu": time.process_time() - start}), flush=True)


@dataclass
class Row:
    """A row of the table, with its process."""

    label: str
    command: list[str]
    logits: Path
    seconds: list[float] = field(default_factory=list)

    def start(self, threads: int) -> str:
        """Start the process; return what it says of itself."""
        variables = {"ESM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        return str(self._answer()["about"])

    def run(self) -> None:
        """Measure one pass of the process."""
        assert self.process.stdin is not None  # a pipe
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(float(self._answer()["cpu"]))

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None  # a pipe
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # a pipe
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended without an answer: {' '.join(self.command)}")
        found: dict[str, Any] = json.loads(line)
        return found


def rows_of(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield the rows of the table, the reference first."""
    kinds = {REFERENCE: "eager", "transformers sdpa": "sdpa", "molfun": "molfun"}
    if args.bf16:
        kinds["molfun bf16"] = "molfun_bf16"
    for label, kind in kinds.items():
        command = [sys.executable, __file__, "--worker", kind, str(folder), str(args.threads)]
        yield Row(label, command, folder / f"{kind}.npy")
    for precision in ("fp32", "int8") if args.python else ():
        script = str(HERE / "esm2_vs_cpp_worker.py")
        command = [args.python, script, str(folder), precision]
        yield Row(f"esm-cpp {precision}", command, folder / f"esm_cpp_{precision}.npy")


def compare(args: argparse.Namespace, folder: Path, n_residues: int) -> None:
    """Measure all rows in turns and print the table."""
    rows = list(rows_of(args, folder))
    for row in rows:
        print(f"  {row.label}: {row.start(args.threads)}", flush=True)
    for _ in range(args.rounds):
        for row in rows:
            row.run()
    for row in rows:
        row.stop()
    print(f"  {'':22}{'res/CPU s':>10}{'x first':>9}{'error':>10}")
    reference = np.load(rows[0].logits)
    first = statistics.median(rows[0].seconds)
    for row in rows:
        taken = statistics.median(row.seconds)
        error = np.linalg.norm(np.load(row.logits) - reference) / np.linalg.norm(reference)
        print(f"  {row.label:22}{n_residues / taken:10.0f}{first / taken:9.2f}{error:10.1e}")
        if row.label == "molfun" and not error < 1e-5:
            raise SystemExit(f"molfun differs from transformers by {error:.1e} of its size")


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[3]), sys.argv[2], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--python", help="Python of the environment with esm-cpp; else no such row")
    parser.add_argument("--size", choices=NAMES, default="8M")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="also Molfun in bfloat16")
    parser.add_argument("--quick", action="store_true", help="a tiny model, 4 sequences, 1 round")
    args = parser.parse_args()
    if args.quick:
        args.size, args.sequences, args.rounds = "tiny", 4, 1
    if args.python and shutil.which(args.python) is None:
        raise SystemExit(f"no such Python: {args.python}")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(60, 250)))
             for _ in range(args.sequences)]  # fmt: skip
    n = sum(map(len, texts))
    print(f"ESM-2 {args.size}, {len(texts)} sequences, {n:,} residues; "
          f"{harness.machine(args.threads)}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        written(Path(name), args.size, texts)
        compare(args, Path(name), n)


if __name__ == "__main__":
    main()
