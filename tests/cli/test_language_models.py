"""Models of transformers from the command line: by their folder, with structures, and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import Result
from transformers import AutoModel, EsmcConfig, EsmcForMaskedLM, EsmConfig, EsmForMaskedLM

from molfun import MolfunStructureModel

Command = Callable[..., Result]
ESM = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
FAST = ("--epochs", 1, "--batch-size", 4, "--no-report", "--output", "run")


@pytest.fixture
def esmc(project: Path) -> Path:
    torch.manual_seed(0)
    EsmcForMaskedLM(EsmcConfig(**ESM)).save_pretrained(project / "esmc")
    return project


@pytest.fixture
def saprot(project: Path) -> Path:
    torch.manual_seed(0)
    fixed = {"vocab_size": 446, "mask_token_id": 4, "pad_token_id": 1, "token_dropout": True}
    rotary = {"position_embedding_type": "rotary", "emb_layer_norm_before": False}
    config = EsmConfig(**ESM, **fixed, **rotary, layer_norm_eps=1e-5)
    EsmForMaskedLM(config).save_pretrained(project / "saprot")
    return project


@pytest.fixture
def sequences(project: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = {
        "sequence": ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 8)) for _ in range(16)],
        "letters": ["".join(rng.choice(list("acdefghiklmnpqrstvwy#"), 8)) for _ in range(16)],
        "target": rng.normal(size=16).round(3),
    }
    table = pd.DataFrame(rows)
    table.to_csv(project / "table.csv", index=False)
    return table


@pytest.mark.usefixtures("sequences")
def test_a_folder_of_hugging_face_is_tuned_and_written_back(esmc: Path, molfun: Command) -> None:
    source = ("--backbone", "transformers", "--weights", "esmc", "--head", "regression")
    result = molfun("fine-tune", "--data", "table.csv", *source, "--strategy", "lora", *FAST)
    assert result.exit_code == 0, result.output
    assert "Model: ESM-C (" in result.stdout
    result = molfun("predict", "run/checkpoint", "--data", "table.csv", "--output", "out.csv")
    assert result.exit_code == 0, result.output
    result = molfun("export", "run/checkpoint", "hf", "--format", "hf")
    assert result.exit_code == 0, result.output
    assert "The head stays in run/checkpoint: the folder holds ESM-C." in result.stdout
    theirs = AutoModel.from_pretrained(esmc / "hf")
    trained = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu").merge()
    weights = dict(trained.backbone.base_state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, weights[f"model.{name}"]), name
    again = molfun("export", "run/checkpoint", "hf", "--format", "hf")
    assert again.exit_code == 1
    assert again.stderr == "Error: hf exists. Replace with --overwrite, or choose another folder.\n"
    inside = molfun("export", "run/checkpoint", "run/checkpoint/hf", "--format", "hf")
    assert "run/checkpoint is what CHECKPOINT reads. Choose another folder." in inside.stderr


@pytest.mark.usefixtures("sequences")
def test_a_block_in_the_middle(esmc: Path, molfun: Command) -> None:
    source = ("--backbone", "esmc", "--weights", "esmc", "--head", "linear", "--layer", 1)
    result = molfun("fine-tune", "--data", "table.csv", *source, *FAST)
    assert result.exit_code == 0, result.output
    trained = MolfunStructureModel.from_checkpoint(esmc / "run/checkpoint", device="cpu")
    assert len(trained.backbone.blocks()) == 1
    wrong = molfun("fine-tune", "--data", "table.csv", *source[:-1], 3, *FAST, "--overwrite")
    assert wrong.exit_code == 1
    assert "Error: layer must be from 1 to 2 for 2 blocks, got 3." in wrong.stderr


@pytest.mark.usefixtures("sequences")
def test_the_best_block_is_chosen_by_one_pass(esmc: Path, molfun: Command) -> None:
    source = ("--backbone", "esmc", "--weights", "esmc", "--head", "linear", "--sweep", "layer")
    fit = ("fine-tune", "--data", "table.csv", "--val-frac", 0.3, *source, *FAST)
    result = molfun(*fit)
    assert result.exit_code == 0, result.output
    assert "Layers, by val/loss:\n  layer   1  val_loss=" in result.stdout
    chosen = yaml.safe_load((esmc / "run/config.yaml").read_text())["layer"]
    line = next(line for line in result.stdout.splitlines() if line.endswith(" <-"))
    assert line.split()[1] == str(chosen)
    trained = MolfunStructureModel.from_checkpoint(esmc / "run/checkpoint", device="cpu")
    assert len(trained.backbone.blocks()) == chosen
    again = molfun(*fit[:-4], "--output", "run", "--epochs", 2, "--resume")
    assert "Layers, by" not in again.stdout
    both = molfun(*fit, "--layer", 1, "--overwrite")
    assert "--sweep layer chooses the block: leave --layer out." in both.stderr


def test_letters_of_structures_in_a_column(
    saprot: Path, sequences: pd.DataFrame, molfun: Command
) -> None:
    source = ("--backbone", "saprot", "--weights", "saprot", "--head", "linear")
    column = ("--structure-column", "letters")
    result = molfun("fine-tune", "--data", "table.csv", *column, *source, *FAST)
    assert result.exit_code == 0, result.output
    result = molfun("predict", "run/checkpoint", "--data", "table.csv", "--output", "with.csv")
    assert result.exit_code == 0, result.output
    blank = sequences.assign(letters="")
    blank.to_csv("blank.csv", index=False)
    result = molfun("predict", "run/checkpoint", "--data", "blank.csv", "--output", "blank_out.csv")
    assert result.exit_code == 0, result.output
    found, other = (
        pd.read_csv(saprot / name)["prediction"] for name in ("with.csv", "blank_out.csv")
    )
    assert not np.allclose(found, other)
    sequences.assign(letters="pv").to_csv("short.csv", index=False)
    result = molfun("predict", "run/checkpoint", "--data", "short.csv", "--output", "no.csv")
    assert result.exit_code == 1
    assert "seq_1 (short.csv, line 2) has 2 structure letters for 8 residues" in result.stderr


def test_letters_of_structures_in_files(saprot: Path, molfun: Command) -> None:
    source = ("--backbone", "saprot", "--weights", "saprot", "--head", "linear")
    files = ("--data", "data.csv", "--pdbs", "pdbs", "--plddt-below", 10)
    result = molfun("fine-tune", *files, *source, *FAST)
    assert result.exit_code == 0, result.output
    trained = MolfunStructureModel.from_checkpoint(saprot / "run/checkpoint", device="cpu")
    assert trained.backbone.config_dict["plddt_below"] == 10


def test_letters_of_predictions_alone_by_auto(saprot: Path, molfun: Command) -> None:
    source = ("--backbone", "saprot", "--weights", "saprot", "--head", "linear")
    files = ("--data", "data.csv", "--pdbs", "pdbs", "--plddt-below", "auto")
    first = min((saprot / "pdbs").iterdir())
    first.write_text("TITLE     ESMFOLD V1 PREDICTION FOR INPUT\n" + first.read_text())
    result = molfun("fine-tune", *files, *source, *FAST)
    assert result.exit_code == 0, result.output
    log = (saprot / "run/run.log").read_text()
    text = "structures is a prediction with pLDDT, and gets no letter below 70; "
    assert len(re.findall(f"plddt_below='auto': 1 of \\d+ {text}", log)) == 1
    trained = MolfunStructureModel.from_checkpoint(saprot / "run/checkpoint", device="cpu")
    assert trained.backbone.config_dict["plddt_below"] == "auto"
    result = molfun("fine-tune", *files[:-1], "high", *source, *FAST, "--overwrite")
    assert "plddt_below: should be a number from 0 to 100, or auto (got 'high')" in result.stderr


@pytest.mark.usefixtures("sequences")
def test_a_folder_that_is_not_there(molfun: Command) -> None:
    result = molfun(
        "fine-tune", "--data", "table.csv", "--backbone", "transformers", "--weights", "none", *FAST
    )
    assert result.exit_code == 1
    text = "Error: none is neither a file nor a folder here. Give that of the model.\n"
    assert result.stderr.endswith(text)
