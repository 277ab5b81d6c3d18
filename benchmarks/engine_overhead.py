"""Overhead of training engines per optimizer step: Molfun, Lightning, accelerate, Trainer.

    python benchmarks/engine_overhead.py --batch 32 --steps 500 3000
    python benchmarks/engine_overhead.py --quick

A small head (linear, ReLU, linear) trains on pooled representations that were computed before, so
nearly all time of a step is the engine's. Every variant starts from the same weights, sees the same
batches in the same order, and uses the same AdamW (weight decay on matrices only) and cosine
schedule; their mean losses over the last pass agree. The baseline is a bare loop. Molfun runs
through ``fit`` with samples that carry their representation.

There are two kinds of table. "steps" does nothing but steps. "usual" clips the gradient, keeps a
moving average of the weights and writes a CSV log with a progress bar. (Trainer has no average; it
logs every 50 steps to the terminal, which is discarded here like all bars. accelerate is a loop of
the user's, with an average and without a log.) Batches come in two ways: "ready", or from a
``DataLoader`` that collates samples one by one.

Each case runs with two numbers of steps. Their difference gives CPU microseconds per step without
the set-up (with one thread, the default, this is time); it is printed below. Lightning, accelerate
and Trainer are left out if they are not installed
(``pip install lightning transformers accelerate``).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

Kind = Literal["steps", "usual"]
Feed = Literal["ready", "loader"]
DIM, N_BATCHES, LR, CLIP, DECAY = 320, 50, 1e-3, 1.0, 0.999
HEAD: dict[str, Any] = {"dropout": 0.0, "standardize": False}
PEERS = {
    "lightning": ("lightning",),
    "accelerate": ("accelerate",),
    "transformers": ("transformers", "accelerate"),
}
NAMES = {"steps": "Nothing but steps", "usual": "Clipping, average, log"}


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    engine: Literal["bare", "molfun", "lightning", "accelerate", "transformers"]
    kind: Kind
    feed: Feed
    batch: int
    steps: int

    @property
    def usual(self) -> bool:
        return self.kind == "usual"

    @property
    def epochs(self) -> int:
        return self.steps // N_BATCHES


class Ready:
    """Loader of batches that were collated before."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Peer(nn.Module):
    """Copy of Molfun's head as a module that computes and keeps the loss of every batch."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.layers = copy.deepcopy(head.layers)
        self.losses: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = functional.mse_loss(self.layers(x).squeeze(-1), y)
        self.losses.append(loss.detach())
        return {"loss": loss}

    def last_pass(self) -> float:
        """Return the mean loss over the last pass."""
        return float(torch.stack(self.losses[-N_BATCHES:]).mean())


def optimizer_of(peer: nn.Module, steps: int) -> tuple[Any, Any]:
    """Return AdamW and the schedule with the settings of `HeadOnlyFinetune`."""
    from molfun.training.schedule import multiplier

    parameters = list(peer.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    factor = multiplier("cosine", total_steps=steps, warmup_steps=0, floor=1e-6)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# --- engines -------------------------------------------------------------------------------------


def bare(peer: Peer, feed: Iterable[Any], case: Case) -> None:
    """Train in a plain PyTorch loop, the baseline."""
    optimizer, schedule = optimizer_of(peer, case.steps)
    parameters = list(peer.parameters())
    average = [p.detach().clone() for p in parameters]
    for _ in range(case.epochs):
        for x, y in feed:
            peer(x, y)["loss"].backward()
            if case.usual:
                nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if case.usual:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - DECAY)


def lightning(peer: Peer, feed: Iterable[Any], case: Case) -> None:
    """Train with Lightning's Trainer, with everything off or with the usual options."""
    import lightning as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.peer = peer

        def training_step(self, batch: Any, _index: int) -> Any:
            loss = self.peer(*batch)["loss"]
            if case.usual:
                self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer, schedule = optimizer_of(self.peer, case.steps)
            plan = {"scheduler": schedule, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": plan}

    with tempfile.TemporaryDirectory() as folder:
        extra: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
        if case.usual:
            extra = {
                "logger": CSVLogger(folder),
                "callbacks": [EMAWeightAveraging(decay=DECAY)],
                "gradient_clip_val": CLIP,
            }
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=case.epochs,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **extra,
        )
        trainer.fit(Module(), feed)


def accelerate(peer: Peer, feed: Iterable[Any], case: Case) -> None:
    """Train in the loop that accelerate's documentation shows."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer, schedule = optimizer_of(peer, case.steps)
    parameters = list(peer.parameters())
    average = [p.detach().clone() for p in parameters]
    loader = feed if isinstance(feed, DataLoader) else None
    model, optimizer, schedule = accelerator.prepare(peer, optimizer, schedule)
    feed = feed if loader is None else accelerator.prepare(loader)
    for _ in range(case.epochs):
        for x, y in feed:
            with accelerator.accumulate(model):
                accelerator.backward(model(x, y)["loss"])
                if case.usual:
                    accelerator.clip_grad_norm_(parameters, CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if case.usual:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - DECAY)


def transformers(peer: Peer, feed: Iterable[Any], case: Case) -> None:
    """Train with the Trainer of transformers, which has no average of the weights."""
    from transformers import Trainer, TrainingArguments

    class Fed(Trainer):
        def get_train_dataloader(self) -> Any:
            return feed

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return model(*inputs)["loss"]

        def _prepare_inputs(self, inputs: Any) -> Any:
            return inputs  # tensors on the right device already; the default wants a dict

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=case.epochs,
            max_grad_norm=CLIP if case.usual else 0.0,
            logging_strategy="steps" if case.usual else "no",
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            disable_tqdm=not case.usual,
            use_cpu=True,
        )
        optimizers = optimizer_of(peer, case.steps)
        Fed(peer, arguments, train_dataset=[0], optimizers=optimizers).train()


# --- measuring -----------------------------------------------------------------------------------


def molfun_run(inputs: np.ndarray, labels: np.ndarray, feed: Feed, batch: int) -> Any:
    """Return a function that trains the head through ``fit``."""
    from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
    from molfun.cli.console import ConsoleProgress
    from molfun.training.callbacks import CSVLog

    # a backbone of one block that never runs: `fit` checks the width of given representations
    source = MolfunStructureModel(
        "esm2",
        config=f"esm2_t1_d{DIM}_h4",
        head="mlp",
        head_config=HEAD,
        task_config={"standardize": False},
        device="cpu",
        seed=0,
    )
    data = SequenceDataset.from_list([("MKV", float(y)) for y in labels])
    data = data.with_representations(inputs)
    loader: Any = DataLoader(data, batch_size=batch, collate_fn=data.collate_fn)
    if feed == "ready":
        loader = list(loader)

    def run(case: Case) -> float:
        model = copy.deepcopy(source)
        usual: dict[str, Any] = {"grad_clip": CLIP, "ema_decay": DECAY}
        strategy = HeadOnlyFinetune(lr=LR, **(usual if case.usual else {"grad_clip": 0.0}))
        with tempfile.TemporaryDirectory() as folder:
            log = [CSVLog(Path(folder) / "history.csv"), ConsoleProgress()]
            history = model.fit(
                loader,
                strategy=strategy,
                epochs=case.epochs,
                cache="off",
                callbacks=log if case.usual else (),
            )
        return float(history[-1]["train_loss"])

    return run


def peer_run(inputs: np.ndarray, labels: np.ndarray, feed: Feed, batch: int) -> Any:
    """Return a function that trains the same head with another engine."""
    from molfun.heads.pooled import MLPHead

    torch.manual_seed(0)
    head = MLPHead(single_dim=DIM, **HEAD)
    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels))
    loader: Any = DataLoader(data, batch_size=batch)
    if feed == "ready":
        loader = Ready(list(loader))

    def run(case: Case) -> float:
        peer = Peer(head)
        engines = {
            "bare": bare,
            "lightning": lightning,
            "accelerate": accelerate,
            "transformers": transformers,
        }
        engines[case.engine](peer, loader, case)
        return peer.last_pass()

    return run


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case; runs in the process of its row."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N_BATCHES * case.batch, DIM)).astype(np.float32)
    labels = rng.normal(size=len(inputs)).astype(np.float32)
    make = molfun_run if case.engine == "molfun" else peer_run
    if case.engine in PEERS:
        importlib.import_module(case.engine)  # before memory is measured
    run = make(inputs, labels, case.feed, case.batch)

    def quietly(part: Case) -> float:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return float(run(part))

    return lambda: quietly(replace(case, steps=N_BATCHES)), lambda: quietly(case)


def table(kind: Kind, feed: Feed, args: argparse.Namespace, about: str) -> None:
    """Measure both numbers of steps in turns, and print the cost per step."""
    engines = ["bare", "molfun", *args.peers]
    labels = {
        "bare": "bare loop",
        "molfun": "molfun fit",
        "lightning": "Lightning Trainer",
        "accelerate": "accelerate" + (", no log" if kind == "usual" else ""),
        "transformers": "transformers Trainer" + (", no average" if kind == "usual" else ""),
    }
    cases = [Case(e, kind, feed, args.batch, n) for n in args.steps for e in engines]
    variants = [Variant(labels[c.engine], c) for c in cases]
    results = harness.compare(variants, prepare, rounds=args.rounds, threads=args.threads)
    bounds = [Bound("molfun fit", "bare loop", 2.5)]
    if kind == "usual":  # Molfun clips, averages and logs in fewer calls than the others
        bounds.append(Bound("molfun fit", "Lightning Trainer", 1.0))
    by_steps = results[: len(engines)], results[len(engines) :]
    for steps, rows in zip(args.steps, by_steps, strict=True):
        title = f"{NAMES[kind]}, {feed}, batch {args.batch}, {steps} steps"
        harness.show(title, rows, value="loss")
        harness.record(args.history, "engine_overhead", title, rows, about)
        # set-up takes as long as the fewer steps, so only the many are bounded
        harness.judge(title, rows, bounds if steps == args.steps[1] else ())
    few, many = args.steps
    first = None
    print(f"\n  {'without set-up':<34}{'CPU us/step':>12}{'x bare':>8}{'over bare':>11}")
    for a, b in zip(*by_steps, strict=True):
        each = (b.cpu - a.cpu) / (many - few) * 1e6
        first = each if first is None else first
        print(f"  {b.label:<34}{each:>12.0f}{each / first:>8.2f}{each - first:>+11.0f}", flush=True)


def installed() -> list[str]:
    """Return the engines that can be imported, and print a line for each that cannot."""
    found = []
    for name, packages in PEERS.items():
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} not installed.")
        else:
            found.append(name)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--feeds", nargs="+", choices=("ready", "loader"), default=["ready", "loader"]
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", nargs=2, type=int, default=[500, 3000], metavar=("FEW", "MANY"),
                        help=f"multiples of {N_BATCHES}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument(
        "--quick", action="store_true", help="few steps of ready batches, two rounds"
    )
    args = parser.parse_args()
    if args.quick:
        args.steps, args.feeds, args.rounds = [100, 400], ["ready"], 2
    few, many = args.steps
    if few % N_BATCHES or many % N_BATCHES or not 0 < few < many:
        parser.error(f"--steps takes two rising multiples of {N_BATCHES}, got {few} and {many}")
    args.peers = installed()
    about = harness.machine(args.threads)
    print(about)
    for kind in args.kinds:
        for feed in args.feeds:
            table(kind, feed, args, about)
    harness.finish()


if __name__ == "__main__":
    main()
