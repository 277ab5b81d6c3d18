"""Demos on ten sequences: ``python -m molfun.esm2 train`` and ``python -m molfun.esm2 infer``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from molfun.errors import MolfunError
from molfun.esm2.config import HEAD_PREFIX, ESM2FineTuneSeqConfig
from molfun.esm2.data import ESM2FineTuneDataModule, InMemorySingleValueDataset
from molfun.esm2.training import infer_model, train_model

DEMO_SEQUENCES = (
    "TLILGWSDKLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "GRFNVWLGGNESKIRQVLKAVKEIGVSPTLFAVYEKN",
    "DELTALGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "KLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LFGAIGNAISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "LGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "ISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "SGSKASSDSQDANQCCTSCEDNAPATSYCVECSEPLCETCVEAHQRVKYTKDHTVRSTGPAKT",
)
"""The ten sequences of BioNeMo's example; the label of each is its length / 100."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the demos.

    Parameters
    ----------
    arguments
        Arguments as on the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m molfun.esm2",
        description="Learn the lengths of ten sequences with ESM-2, and predict them.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="fine-tune; writes OUTPUT/finetune_regressor")
    train.add_argument("--output", type=Path, default=Path("runs"))
    train.add_argument("--steps", type=int, default=50, help="optimizer steps (default 50)")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    infer = verbs.add_parser("infer", help="predict; without a checkpoint from random weights")
    infer.add_argument("checkpoint", nargs="?", help="folder that train wrote")
    for verb in (train, infer):
        verb.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    # the lines of `StepLog` alone, without level and name; other packages show warnings only
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("molfun.esm2").setLevel(logging.INFO)
    try:
        {"train": _train_demo, "infer": _infer_demo}[options.verb](options)
    except MolfunError as error:
        parser.exit(1, f"error: {error}\n")


def _train_demo(options: argparse.Namespace) -> None:
    dataset = InMemorySingleValueDataset([(s, len(s) / 100) for s in DEMO_SEQUENCES])
    checkpoint, metrics, _ = train_model(
        "finetune_regressor",
        options.output,
        ESM2FineTuneSeqConfig(),
        ESM2FineTuneDataModule(dataset, dataset),
        options.steps,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    assert metrics is not None
    _say(f"val_loss {metrics['val_loss']:.4g}, pearson {metrics['val/pearson']:.3f}")
    _say(f"checkpoint {checkpoint}")


def _infer_demo(options: argparse.Namespace) -> None:
    # without a checkpoint there is no head to keep
    keep_head = options.checkpoint is not None
    config = ESM2FineTuneSeqConfig(
        initial_ckpt_path=options.checkpoint,
        initial_ckpt_skip_keys_with_these_prefixes=[] if keep_head else [HEAD_PREFIX],
    )
    module = ESM2FineTuneDataModule(predict_dataset=InMemorySingleValueDataset(DEMO_SEQUENCES))
    output = infer_model(config, module, seed=options.seed)["regression_output"]
    _say("label  regression_output")
    for sequence, value in zip(DEMO_SEQUENCES, output[:, 0].tolist(), strict=True):
        _say(f"{len(sequence) / 100:5.2f}  {value:.4f}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
