"""Make runs for later versions to read: for each family a half-done one and a finished one.

``python tests/kept/make.py FOLDER`` writes, for each family, its data, ``half/`` (killed in the
middle of training), ``checkpoint/`` and ``end.json`` (history and predictions of the same run left
alone). The folders beside this file were made by the version of 2026-11-28 and never change.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
for _folder in (".", "data", "soak"):
    sys.path.append(str(TESTS / _folder))

PET = (
    "d_pet=16", "d_node=24", "d_head=16", "d_feedforward=16", "num_heads=2",
    "num_attention_layers=1", "cutoff=3.0",
)  # fmt: skip
RUNS = {
    "esm2": "fine-tune --backbone esm2_tiny --weights base.safetensors --data sequences.csv "
    "--batch-size 4 --strategy lora --lora-rank 2 --epochs 4",
    "openfold": "fine-tune --preset tiny --data table.csv --pdbs pdbs --strategy head_only "
    "--epochs 4 --accum 2",
    "timeseries": "fine-tune --backbone timeseries --data series.csv "
    "--task binary --target-column label --batch-size 4 --strategy full --epochs 4 "
    "backbone_config.config.d_model=16 backbone_config.config.n_layers=2",
    "pet": "fine-tune --backbone pet --data atoms.xyz --batch-size 4 --strategy partial "
    "--unfreeze-blocks 1 --epochs 4 " + " ".join(f"backbone_config.config.{x}" for x in PET),
    "pretrain": "pretrain --backbone timeseries --data series.csv "
    "--target-column label --epochs 4 --batch-size 4 --val-frac 0.2 "
    "backbone_config.config.d_model=16 backbone_config.config.n_layers=2",
}  # fmt: skip
DATA = {
    "esm2": ["sequences.csv", "base.safetensors"], "openfold": ["table.csv", "pdbs"],
    "timeseries": ["series.csv"], "pet": ["atoms.xyz"], "pretrain": ["series.csv"],
}  # fmt: skip
STATES = 3
"""States that a run writes before it is killed: after set-up, and after two epochs."""


def in_child(arguments: list[str], folder: Path, *, states: int | None = None) -> int:
    """Exit code of a command in a process of its own, killed when it has written so many states."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.chdir(folder)
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    from molfun.runs import resume as state

    write, n = state.write_state, 0

    def counted(*given: Any, **options: Any) -> None:
        nonlocal n
        write(*given, **options)
        n += 1
        if n == states:
            os._exit(9)

    state.write_state = counted
    from molfun.cli.main import app

    try:
        app([*arguments, "--device", "cpu"])
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    os._exit(70)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def main(target: Path) -> None:
    from kill_and_resume import warm_up, write_data

    data = target / "data"
    data.mkdir(parents=True)
    write_data(data)
    warm_up()
    from molfun.models.pretraining import save_weights
    from molfun.models.structure import MolfunStructureModel

    save_weights(MolfunStructureModel("esm2_tiny").backbone, data / "base.safetensors")
    for family, command in RUNS.items():
        folder = target / family
        folder.mkdir()
        for name in DATA[family]:
            if (data / name).is_dir():
                shutil.copytree(data / name, folder / name)
            else:
                shutil.copyfile(data / name, folder / name)
        words = command.split()
        assert in_child([*words, "--output", "half"], folder, states=STATES) == 9
        assert in_child([*words, "--output", "whole"], folder) == 0
        end: dict[str, Any] = {"history": rows(folder / "whole" / "history.csv")}
        for path in sorted((folder / "whole").glob("predictions_*.csv")):
            end[path.stem] = rows(path)
        (folder / "end.json").write_text(json.dumps(end, indent=1) + "\n")
        if (folder / "whole" / "checkpoint").exists():
            (folder / "whole" / "checkpoint").rename(folder / "checkpoint")
        else:
            (folder / "whole" / "weights.safetensors").rename(folder / "weights.safetensors")
        shutil.rmtree(folder / "whole")
        shutil.rmtree(folder / "half" / "cache", ignore_errors=True)
    shutil.rmtree(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
