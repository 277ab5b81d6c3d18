"""The fine-tuning guide of ESM-2: its code with other imports, and a test for each promise in it.

B1 to B24 are the numbers of the promises; each test names the one it keeps.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from molfun import MolfunStructureModel, SequenceDataset, esm2
from molfun.errors import CheckpointError, ConfigError, DataError, RunError
from molfun.esm2 import (
    ESM2FineTuneDataModule,
    ESM2FineTuneSeqConfig,
    ESM2FineTuneSeqModel,
    FineTuneTrainer,
    InMemorySingleValueDataset,
    RegressorLossReduction,
    infer_model,
    train_model,
)
from molfun.esm2.__main__ import DEMO_SEQUENCES, main
from molfun.runs.checkpoint import read_meta
from molfun.sample import Sample
from molfun.training import LoRAFinetune
from molfun.training.callbacks import Callback

DATA = [(sequence, len(sequence) / 100) for sequence in DEMO_SEQUENCES]
LABELS = np.array([label for _, label in DATA])

GUIDE = """
import tempfile
from pathlib import Path

from molfun.esm2 import (
    ESM2FineTuneDataModule,
    ESM2FineTuneSeqConfig,
    InMemorySingleValueDataset,
    train_model,
)

# create a List[Tuple] with (sequence, target) values
artificial_sequence_data = [
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
]

data = [(seq, len(seq)/100.0) for seq in artificial_sequence_data]

# we are training and validating on the same dataset for simplicity
dataset = InMemorySingleValueDataset(data)
data_module = ESM2FineTuneDataModule(train_dataset=dataset, valid_dataset=dataset)

with tempfile.TemporaryDirectory() as experiment_tempdir_name:
    experiment_dir = Path(experiment_tempdir_name)
    experiment_name = "finetune_regressor"
    n_steps_train = 50
    seed = 42

    config = ESM2FineTuneSeqConfig(
        # initial_ckpt_path=str(pretrain_ckpt_path)
    )

    checkpoint, metrics, trainer = train_model(
        experiment_name=experiment_name,
        experiment_dir=experiment_dir,  # new checkpoint will land in a subdir of this
        config=config,  # same config as before since we are just continuing training
        data_module=data_module,
        n_steps_train=n_steps_train,
    )
"""

INFERENCE = """
from dataclasses import field
from molfun.esm2 import ESM2FineTuneDataModule, ESM2FineTuneSeqConfig, infer_model

config = ESM2FineTuneSeqConfig(
    initial_ckpt_path = finetuned_checkpoint,
    initial_ckpt_skip_keys_with_these_prefixes = field(default_factory=list)
)
data_module = ESM2FineTuneDataModule(
    predict_dataset=dataset, micro_batch_size=len(dataset), global_batch_size=len(dataset)
)
results = infer_model(config, data_module)
"""


def run(code: str, **names: Any) -> dict[str, Any]:
    space: dict[str, Any] = dict(names)
    exec(compile(code, "guide", "exec"), space)
    return space


def tiny(**settings: Any) -> ESM2FineTuneSeqConfig:
    return ESM2FineTuneSeqConfig(**{"backbone": "esm2_tiny", **settings})


def module(n: int = 10, micro: int = 4, glob: int = 8, **more: Any) -> ESM2FineTuneDataModule:
    dataset = InMemorySingleValueDataset(DATA[:n])
    return ESM2FineTuneDataModule(
        dataset, more.pop("valid", dataset), micro_batch_size=micro, global_batch_size=glob, **more
    )


def to_predict(data: Sequence[Any] = DATA, **sizes: int) -> ESM2FineTuneDataModule:
    return ESM2FineTuneDataModule(predict_dataset=InMemorySingleValueDataset(data), **sizes)


def weights(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def encoder(model: MolfunStructureModel) -> dict[str, torch.Tensor]:
    return weights(model.backbone)


def head(model: MolfunStructureModel) -> dict[str, torch.Tensor]:
    assert model.head is not None
    return weights(model.head)


def predictions(model: MolfunStructureModel) -> torch.Tensor:
    result: torch.Tensor = model.predict(InMemorySingleValueDataset(DATA))["prediction"]
    return result


@dataclass(frozen=True)
class Run:
    checkpoint: Path
    metrics: dict[str, Any]
    trainer: FineTuneTrainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a small encoder; nobody changes it."""
    folder = tmp_path_factory.mktemp("experiments")
    checkpoint, metrics, trainer = train_model("tiny", folder, tiny(), module(), 6)
    assert metrics is not None
    return Run(checkpoint, metrics, trainer)


# --- the guide's code ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("micro", "glob"), [(4, 8), (10, 10)])
def test_fifty_steps_on_a_random_encoder_learn_the_lengths(
    tmp_path: Path, seed: int, micro: int, glob: int
) -> None:
    """Half the variance of the labels is the bound; one step of chance would not pass it."""
    _, metrics, trainer = train_model(
        "gate", tmp_path, ESM2FineTuneSeqConfig(), module(micro=micro, glob=glob), 50, seed=seed
    )
    values = predictions(trainer.model).numpy()
    mse = float(((values - LABELS) ** 2).mean())
    assert metrics is not None
    assert metrics["val_loss"] == pytest.approx(mse, rel=1e-4)
    assert mse <= 0.005
    assert np.corrcoef(values, LABELS)[0, 1] >= 0.9


def test_the_training_section_of_the_guide_runs() -> None:
    space = run(GUIDE)
    assert space["checkpoint"].parent == space["experiment_dir"] / "finetune_regressor"
    assert space["metrics"]["val_loss"] <= 0.005
    assert space["trainer"].global_step == 50
    assert space["trainer"].model.backbone.config_dict["architecture"]["num_layers"] == 6


def test_the_inference_section_of_the_guide_runs(trained: Run) -> None:
    """The guide writes field(default_factory=list) where a list belongs; it is taken."""
    dataset = InMemorySingleValueDataset(DATA)
    results = run(INFERENCE, finetuned_checkpoint=str(trained.checkpoint), dataset=dataset)
    torch.testing.assert_close(
        results["results"]["regression_output"][:, 0].double(), predictions(trained.trainer.model)
    )


# --- loss: B1 to B3 ------------------------------------------------------------------------------


def test_b1_the_loss_is_the_mean_squared_error_of_the_raw_labels(trained: Run) -> None:
    """B1: forward gives (loss, {"avg": loss}), MSE of labels (b, 1); the run trains on the same."""
    generator = torch.Generator().manual_seed(0)
    labels, output = torch.rand(5, 1, generator=generator), torch.rand(5, 1, generator=generator)
    loss, logged = RegressorLossReduction().forward({"labels": labels}, output)
    torch.testing.assert_close(loss, functional.mse_loss(output, labels))
    assert logged == {"avg": loss}

    error = predictions(trained.trainer.model).numpy() - LABELS
    assert trained.metrics["val_loss"] == pytest.approx(float((error**2).mean()), rel=1e-4)
    state = read_meta(trained.checkpoint).heads[0].task
    assert state["state"] == {"mean": 0.0, "std": 1.0, "fitted": True}


def test_b1_shapes_that_differ_are_not_broadcast() -> None:
    """B1: (b, 1) against (b,) would give a (b, b) loss in torch."""
    with pytest.raises(DataError, match=r"shape \(3, 1\), predictions \(3,\)"):
        RegressorLossReduction().forward({"labels": torch.ones(3, 1)}, torch.ones(3))


def test_b2_reduce_is_the_mean_of_avg_and_only_logs(tmp_path: Path, caplog: Any) -> None:
    """B2: a reduce that lies changes the log and nothing else."""

    class Lying(RegressorLossReduction):
        def reduce(self, losses_reduced_per_micro_batch: Sequence[Any]) -> torch.Tensor:
            assert all(loss.keys() == {"avg"} for loss in losses_reduced_per_micro_batch)
            return torch.tensor(1234.0)

    class Config(ESM2FineTuneSeqConfig):
        def get_loss_reduction_class(self) -> type[RegressorLossReduction]:
            return Lying

    averages = [{"avg": torch.tensor(1.0)}, {"avg": torch.tensor(2.0)}, {"avg": torch.tensor(6.0)}]
    assert float(RegressorLossReduction().reduce(averages)) == 3.0

    caplog.set_level(logging.INFO, logger="molfun.esm2")
    _, _, honest = train_model("honest", tmp_path, tiny(), module(), 2)
    assert "1234" not in caplog.text
    _, _, lied = train_model("lying", tmp_path, Config(backbone="esm2_tiny"), module(), 2)
    assert caplog.text.count("reduced_train_loss: 1234") == 2
    assert equal(head(honest.model), head(lied.model))
    assert honest.history == lied.history


def test_b3_micro_batches_count_by_their_labels(tmp_path: Path) -> None:
    """B3: 8 sequences in one piece, in halves, and in uneven parts with a blank label are one."""
    steps = []
    blank = [*DATA[:7], (DATA[7][0], None)]
    for micro in (8, 4, 2):
        dataset = InMemorySingleValueDataset(blank)
        data = ESM2FineTuneDataModule(dataset, micro_batch_size=micro, global_batch_size=8)
        _, _, trainer = train_model(f"micro{micro}", tmp_path, tiny(ft_dropout=0.0), data, 1)
        steps.append(head(trainer.model))
    for other in steps[1:]:
        for name, tensor in steps[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


# --- head and model: B4 to B9 --------------------------------------------------------------------


def test_b4_the_head_has_the_layers_of_the_guide() -> None:
    """B4: [hidden, 256, 1]."""
    model = tiny().configure_model()
    shapes = [t.shape for name, t in head(model).items() if name.endswith("weight")]
    assert shapes == [(256, 32), (1, 256)]


def test_b5_relu_and_dropout_follow_the_hidden_layer_and_not_the_last() -> None:
    """B5: Linear, ReLU, Dropout(ft_dropout), Linear."""
    for dropout in (0.25, 0.1):
        model: Any = tiny(ft_dropout=dropout).configure_model()
        kinds = [type(layer).__name__ for layer in model.head.layers]
        assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
        assert model.head.layers[2].p == dropout
    assert ESM2FineTuneSeqConfig().ft_dropout == 0.25


@torch.no_grad()
def test_b6_the_head_sees_the_mean_over_residues() -> None:
    """B6: the tokens for beginning and end are left out; compared with fair-esm itself."""
    from esm.model.esm2 import ESM2

    model: Any = tiny().configure_model(device="cpu")
    stock = ESM2(**model.backbone.config.to_dict(), alphabet="ESM-1b")
    stock.load_state_dict(model.backbone.model.state_dict())
    item = InMemorySingleValueDataset(DATA)[0]
    hidden = stock.eval()(item["text"][None], repr_layers=[2])["representations"][2][0]
    expected = model.head.layers(hidden[1:-1].mean(0))
    torch.testing.assert_close(predictions(model)[:1].float(), expected, rtol=1e-4, atol=1e-6)


def test_b7_the_model_is_backbone_and_head() -> None:
    """B7: one model of both, and the facade with all it can do."""
    model = ESM2FineTuneSeqConfig().configure_model()
    assert isinstance(model, ESM2FineTuneSeqModel)
    assert isinstance(model, MolfunStructureModel)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone", "head"}
    assert model.backbone.single_dim == 320


@pytest.mark.parametrize("frozen", [True, False])
def test_b8_the_encoder_is_frozen_unless_asked_otherwise(tmp_path: Path, frozen: bool) -> None:
    """B8: encoder_frozen=True is the default and moves no weight of the encoder."""
    assert ESM2FineTuneSeqConfig().encoder_frozen is True
    config = tiny() if frozen else tiny(encoder_frozen=False)
    before = config.configure_model()
    _, _, trainer = train_model("run", tmp_path, config, module(), 2)
    assert equal(encoder(before), encoder(trainer.model)) is frozen
    assert not equal(head(before), head(trainer.model))
    trains = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert any(n.startswith("backbone") for n in trains) is not frozen
    assert any(n.startswith("head") for n in trains)


def test_b8_a_whole_encoder_trains_at_one_rate() -> None:
    """B8: as with one optimizer over everything; no layer-wise decay, no faster head."""
    model = tiny(encoder_frozen=False).configure_model()
    strategy = tiny(encoder_frozen=False).strategy(lr=5e-4, accumulation_steps=2)
    assert {group.lr for group in strategy.groups(model)} == {5e-4}
    assert strategy.accumulation_steps == 2


def test_b9_one_device_owns_the_one_head() -> None:
    """B9: there is one stage, so it is the last one."""
    model = tiny().configure_model()
    assert len({p.device for p in model.parameters()}) == 1
    assert [name for name, part in model.named_modules() if part is model.head] == ["head"]
    owned = {f"head.{name}" for name in head(model)}
    assert {name for name in weights(model) if not name.startswith("backbone.")} == owned


# --- config: B10 to B15 --------------------------------------------------------------------------


def test_b10_the_config_is_a_dataclass_to_build_on() -> None:
    """B10: model_cls is built; a subclass of the dataclass may change defaults and add fields."""

    class Model(ESM2FineTuneSeqModel):
        pass

    @dataclass(kw_only=True)
    class Config(ESM2FineTuneSeqConfig):
        model_cls: type[ESM2FineTuneSeqModel] = Model
        backbone: str = "esm2_tiny"
        note: str = ""

    assert type(Config(note="mine").configure_model()) is Model
    assert dataclasses.asdict(tiny())["model_cls"] is ESM2FineTuneSeqModel
    assert copy.deepcopy(tiny()) == tiny() == dataclasses.replace(tiny())


def test_b10_unknown_fields_and_bad_values_are_named_at_once() -> None:
    """B10: with the nearest name."""
    wrong: dict[str, Any] = {"encoder_frosen": True, "ft_drop": 0.1}
    with pytest.raises(ConfigError) as caught:
        ESM2FineTuneSeqConfig(**wrong)
    assert "Did you mean 'encoder_frozen'?" in str(caught.value)
    assert "Did you mean 'ft_dropout'?" in str(caught.value)
    bad: dict[str, Any] = {"encoder_frozen": "no", "ft_dropout": 1.0, "model_cls": Dataset}
    bad["initial_ckpt_skip_keys_with_these_prefixes"] = ["encoder"]
    with pytest.raises(ConfigError) as caught:
        ESM2FineTuneSeqConfig(**bad)
    for text in (
        "encoder_frozen must be True or False, got 'no'.",
        "ft_dropout must be in [0, 1), got 1.0.",
        "must be ['regression_head'] or [], got ['encoder'].",
        "model_cls must be ESM2FineTuneSeqModel or a subclass",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize("layout", ["fair-esm", "named after its size"])
def test_b11_weights_come_from_a_file(tmp_path: Path, layout: str) -> None:
    """B11: a file of fair-esm; one named after a released size needs no backbone."""
    source: Any = tiny().configure_model(seed=7)
    name = "my_weights" if layout == "fair-esm" else "esm2_tiny"
    path = tmp_path / f"{name}.pt"
    torch.save({"model": source.backbone.model.state_dict()}, path)
    backbone = "esm2_tiny" if layout == "fair-esm" else None
    config = ESM2FineTuneSeqConfig(initial_ckpt_path=str(path), backbone=backbone)
    assert equal(encoder(config.configure_model(seed=1)), encoder(source))


def test_b11_a_hugging_face_file_and_a_file_of_another_size(tmp_path: Path) -> None:
    """B11: the names of transformers; the error names the size to ask for."""
    from safetensors.torch import save_file

    source: Any = tiny().configure_model(seed=7)
    theirs = {
        "embeddings.word_embeddings.weight": "embed_tokens.weight",
        "encoder.emb_layer_norm_after.weight": "emb_layer_norm_after.weight",
        "encoder.emb_layer_norm_after.bias": "emb_layer_norm_after.bias",
    }
    parts = {
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.LayerNorm": "self_attn_layer_norm",
        "LayerNorm": "final_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
    }
    for i in range(2):
        for a, b in parts.items():
            for leaf in ("weight", "bias"):
                theirs[f"encoder.layer.{i}.{a}.{leaf}"] = f"layers.{i}.{b}.{leaf}"
    ours = source.backbone.model.state_dict()
    path = tmp_path / "model.safetensors"
    save_file({f"esm.{a}": ours[b].contiguous() for a, b in theirs.items()}, path)
    model: Any = tiny(initial_ckpt_path=path).configure_model(seed=1)
    loaded = model.backbone.model.state_dict()
    assert all(torch.equal(loaded[name], ours[name]) for name in theirs.values())

    with pytest.raises(CheckpointError, match="The file is of the size 'esm2_tiny'"):
        ESM2FineTuneSeqConfig(initial_ckpt_path=path).configure_model()


def test_b11_a_missing_file_is_named(tmp_path: Path) -> None:
    """B11: no silent start from random weights."""
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        tiny(initial_ckpt_path=tmp_path / "nothing.pt").configure_model()


def test_b12_the_head_of_a_checkpoint_is_skipped_unless_asked_for(trained: Run) -> None:
    """B12: the default takes the encoder and a new head; [] takes the head too."""
    default = ESM2FineTuneSeqConfig()
    assert default.initial_ckpt_skip_keys_with_these_prefixes == ["regression_head"]
    source = trained.trainer.model
    skipping = ESM2FineTuneSeqConfig(
        initial_ckpt_path=trained.checkpoint, ft_dropout=0.1
    ).configure_model(seed=5)
    assert equal(encoder(skipping), encoder(source))
    assert equal(head(skipping), head(tiny().configure_model(seed=5)))
    assert skipping.head is not None
    assert skipping.head.config_dict["dropout"] == 0.1
    assert skipping.task is not None
    assert skipping.task.state_dict()["fitted"] is False

    keeping = ESM2FineTuneSeqConfig(
        initial_ckpt_path=trained.checkpoint, initial_ckpt_skip_keys_with_these_prefixes=[]
    ).configure_model(seed=5)
    assert equal(encoder(keeping), encoder(source))
    assert equal(head(keeping), head(source))


def test_b12_a_new_head_on_a_checkpoint_trains_and_is_saved(tmp_path: Path, trained: Run) -> None:
    """B12: what comes out is a checkpoint like any other."""
    config = ESM2FineTuneSeqConfig(initial_ckpt_path=trained.checkpoint)
    checkpoint, _, trainer = train_model("second", tmp_path, config, module(), 4)
    assert equal(encoder(trainer.model), encoder(trained.trainer.model))
    again = MolfunStructureModel.from_checkpoint(checkpoint)
    assert torch.equal(predictions(again), predictions(trainer.model))


def test_b12_the_adapters_of_a_checkpoint_are_part_of_its_encoder(tmp_path: Path) -> None:
    """B12: a LoRA run of the facade gives its encoder to a new head."""
    model = MolfunStructureModel("esm2_tiny", head="mlp")
    model.fit(
        SequenceDataset.from_list(DATA), strategy=LoRAFinetune(lr_lora=1e-2, rank=2), max_steps=3
    )
    model.save(tmp_path / "lora")
    config = ESM2FineTuneSeqConfig(initial_ckpt_path=tmp_path / "lora")
    checkpoint, _, trainer = train_model("new", tmp_path, config, module(), 3)
    sample = Sample(id="a", sequence=DATA[0][0])
    single = [m.predict(sample)["trunk"].single for m in (model, trainer.model)]
    torch.testing.assert_close(*single)
    again = MolfunStructureModel.from_checkpoint(checkpoint)
    assert torch.equal(predictions(again), predictions(trainer.model))


def test_b12_a_weight_file_holds_no_head(tmp_path: Path) -> None:
    """B12: asking for one there is an error, not a random head."""
    config = tiny(
        initial_ckpt_path=tmp_path / "a.pt", initial_ckpt_skip_keys_with_these_prefixes=[]
    )
    with pytest.raises(CheckpointError, match="holds no regression_head"):
        config.configure_model()


def test_b12_a_head_of_another_task_is_refused(tmp_path: Path) -> None:
    """B12: its encoder can be had all the same."""
    model = MolfunStructureModel("esm2_tiny", task="binary")
    assert model.task is not None
    model.task.fit_targets([0, 1])
    model.save(tmp_path / "binary")
    config = tiny(
        initial_ckpt_path=tmp_path / "binary", initial_ckpt_skip_keys_with_these_prefixes=[]
    )
    with pytest.raises(CheckpointError, match="its head is for the task 'binary'; skip"):
        config.configure_model()
    taken = tiny(initial_ckpt_path=tmp_path / "binary").configure_model()
    assert equal(encoder(taken), encoder(model))
    assert taken.task_name == "regression"


def test_b13_what_is_not_said_comes_from_the_checkpoint(trained: Run) -> None:
    """B13: the architecture, and with the head its dropout; a size that is said has to fit."""
    for skip in ([], ["regression_head"]):
        model = ESM2FineTuneSeqConfig(
            initial_ckpt_path=trained.checkpoint, initial_ckpt_skip_keys_with_these_prefixes=skip
        ).configure_model()
        assert model.backbone.config_dict["architecture"]["num_layers"] == 2
    kept = ESM2FineTuneSeqConfig(
        initial_ckpt_path=trained.checkpoint,
        initial_ckpt_skip_keys_with_these_prefixes=[],
        ft_dropout=0.9,
    ).configure_model()
    assert kept.head is not None
    assert kept.head.config_dict["dropout"] == 0.25
    other = ESM2FineTuneSeqConfig(initial_ckpt_path=trained.checkpoint, backbone="esm2_t6_8M_UR50D")
    with pytest.raises(CheckpointError, match=r"its encoder is .*'num_layers': 2"):
        other.configure_model()


def test_b13_a_checkpoint_of_another_backbone_is_refused(
    tmp_path: Path, tiny_model: Callable[..., MolfunStructureModel]
) -> None:
    """B13: OpenFold is no ESM-2."""
    tiny_model().save(tmp_path / "openfold")
    with pytest.raises(CheckpointError, match="its backbone is 'openfold', not 'esm2'"):
        tiny(initial_ckpt_path=tmp_path / "openfold").configure_model()


def test_b13_the_folder_of_a_run_is_no_checkpoint(trained: Run) -> None:
    """B13: the error says where in it the checkpoint is."""
    with pytest.raises(CheckpointError, match=r"is the folder of a run; its checkpoint is"):
        tiny(initial_ckpt_path=trained.checkpoint.parent).configure_model()


def test_b14_freezing_and_dropout_are_settings(tmp_path: Path) -> None:
    """B14: both reach the strategy and the head, and the checkpoint says so."""
    config = tiny(encoder_frozen=False, ft_dropout=0.0)
    checkpoint, _, _ = train_model("full", tmp_path, config, module(), 1)
    meta = read_meta(checkpoint)
    assert meta.strategy is not None
    assert meta.strategy["name"] == "full"
    assert meta.heads[0].head["config"]["dropout"] == 0.0
    assert tiny().strategy(lr=1e-3).name == "head_only"


def test_b15_the_config_chooses_the_loss(tmp_path: Path) -> None:
    """B15: get_loss_reduction_class decides what trains; a forward of one's own is refused."""

    class Absolute(RegressorLossReduction):
        loss = "mae"

    class Own(RegressorLossReduction):
        def forward(self, batch: Any, forward_out: Any) -> Any:
            return forward_out.sum(), {}

    @dataclass(kw_only=True)
    class Config(ESM2FineTuneSeqConfig):
        reduction: type[RegressorLossReduction] = field(default=Absolute)

        def get_loss_reduction_class(self) -> type[RegressorLossReduction]:
            return self.reduction

    assert tiny().get_loss_reduction_class() is RegressorLossReduction
    config = Config(backbone="esm2_tiny")
    _, metrics, trainer = train_model("mae", tmp_path, config, module(), 2)
    assert metrics is not None
    error = np.abs(predictions(trainer.model).numpy() - LABELS)
    assert metrics["val_loss"] == pytest.approx(float(error.mean()), rel=1e-4)
    loss, _ = Absolute().forward({"labels": torch.zeros(2, 1)}, torch.tensor([[1.0], [2.0]]))
    assert float(loss) == 1.5
    with pytest.raises(ConfigError, match=r"Own\.forward is not what trains the model"):
        Config(backbone="esm2_tiny", reduction=Own).configure_model()


# --- data: B16 to B18 ----------------------------------------------------------------------------


def test_b16_items_are_samples_with_the_tensors_of_the_guide() -> None:
    """B16: text, types, attention_mask, labels (1,), loss_mask, is_random."""
    from esm.data import Alphabet

    dataset = InMemorySingleValueDataset(DATA, seed=3)
    item = dataset[1]
    assert isinstance(item, Sample)
    assert list(item) == ["text", "types", "attention_mask", "labels", "loss_mask", "is_random"]
    converter = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    assert torch.equal(item["text"], converter([("a", DATA[1][0])])[2][0])
    n = len(DATA[1][0])
    assert len(item["text"]) == n + 2
    assert item["loss_mask"].tolist() == [False, *[True] * n, False]
    assert item["attention_mask"].tolist() == [1] * (n + 2)
    assert item["types"].tolist() == item["is_random"].tolist() == [0] * (n + 2)
    torch.testing.assert_close(item["labels"], torch.tensor([0.32]))
    assert dict(item).keys() == set(item)
    with pytest.raises(KeyError):
        item["label"]
    assert repr(dataset) == "InMemorySingleValueDataset(10 sequences)"
    assert math.isnan(float(InMemorySingleValueDataset(["MKV"])[0]["labels"]))


def test_b16_bad_items_are_listed_and_a_tokenizer_is_refused() -> None:
    """B16: every one of them, before anything runs."""
    bad: Any = [("MKV", 0.5), ("MKV", "0.5"), ("MKV",), 3, (3, "MKV"), ("MKV", True)]
    with pytest.raises(DataError) as caught:
        InMemorySingleValueDataset(bad)
    assert "5 of 6 items are no (sequence, number) pair" in str(caught.value)
    assert "item 1: ('MKV', '0.5')" in str(caught.value)
    tokenizer: Any = "esm"
    with pytest.raises(ConfigError, match="tokenizer='esm' cannot be used"):
        InMemorySingleValueDataset(DATA, tokenizer=tokenizer)


def test_b16_letters_are_checked_for_all_sequences_before_training(tmp_path: Path) -> None:
    """B16: as for every dataset of Molfun."""
    dataset = InMemorySingleValueDataset([("MKV", 0.1), ("MJ", 0.2), ("M*", 0.3)])
    with pytest.raises(DataError, match="2 samples cannot be used with ESM-2"):
        train_model("bad", tmp_path, tiny(), ESM2FineTuneDataModule(dataset), 1)


def test_b17_the_dataset_can_be_extended_to_other_files(tmp_path: Path) -> None:
    """B17: a subclass reads a file; a dataset of one's own and torch's Subset go as well."""

    class FromLines(InMemorySingleValueDataset):
        def __init__(self, path: Path) -> None:
            rows = [line.split() for line in path.read_text().splitlines()]
            super().__init__([(sequence, float(label)) for sequence, label in rows])

    class Own(Dataset[Sample]):
        def __len__(self) -> int:
            return len(DATA)

        def __getitem__(self, index: int) -> Sample:
            return Sample(id=str(index), sequence=DATA[index][0], target=DATA[index][1])

    path = tmp_path / "data.txt"
    path.write_text("".join(f"{sequence} {label}\n" for sequence, label in DATA))
    read = FromLines(path)
    assert read.targets.tolist() == LABELS.tolist()
    heads = []
    for i, dataset in enumerate((read, Own(), Subset(read, range(10)))):
        data = ESM2FineTuneDataModule(dataset, dataset)
        _, _, trainer = train_model(f"run{i}", tmp_path, tiny(), data, 2)
        heads.append(head(trainer.model))
    assert equal(heads[0], heads[1])
    assert equal(heads[0], heads[2])

    class Dicts(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"text": torch.zeros(3)}

    with pytest.raises(DataError, match=r"The dataset gives dict; the model takes molfun\.sample"):
        train_model("dicts", tmp_path, tiny(), ESM2FineTuneDataModule(Dicts()), 1)


def test_b18_sizes_of_micro_and_global_batches() -> None:
    """B18: 4 and 8 by default, the second a multiple of the first."""
    data = ESM2FineTuneDataModule(InMemorySingleValueDataset(DATA))
    assert (data.micro_batch_size, data.global_batch_size, data.accumulation_steps) == (4, 8, 2)
    with pytest.raises(ConfigError, match="a multiple of micro_batch_size=4, got 6"):
        ESM2FineTuneDataModule(micro_batch_size=4, global_batch_size=6)
    with pytest.raises(ConfigError, match="micro_batch_size must be at least 1, got 0"):
        ESM2FineTuneDataModule(micro_batch_size=0)
    assert data.val_dataloader() is None
    with pytest.raises(ConfigError, match="has no predict_dataset"):
        data.predict_dataloader()
    with pytest.raises(ConfigError, match="has an empty train_dataset"):
        ESM2FineTuneDataModule(InMemorySingleValueDataset([])).train_dataloader()


def test_b18_a_sequence_predicts_the_same_in_any_batch(trained: Run) -> None:
    """B18: where others pad, batches are packed; no partial batch is dropped."""
    config = ESM2FineTuneSeqConfig(
        initial_ckpt_path=trained.checkpoint, initial_ckpt_skip_keys_with_these_prefixes=[]
    )
    outputs = []
    for micro in (1, 3, 10):
        data = to_predict(micro_batch_size=micro, global_batch_size=micro)
        outputs.append(infer_model(config, data)["regression_output"])
    assert outputs[0].shape == (10, 1)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-5, atol=1e-6)


# --- training: B19 to B22 ------------------------------------------------------------------------


def test_b19_training_gives_checkpoint_metrics_and_trainer(tmp_path: Path, trained: Run) -> None:
    """B19: the checkpoint is in a folder below experiment_dir; no metrics without validation."""
    assert trained.checkpoint.parts[-2:] == ("tiny", "checkpoint")
    assert trained.trainer.global_step == 6
    assert trained.metrics == trained.trainer.history.best
    assert trained.metrics.keys() >= {"val_loss", "val/pearson", "val/rmse"}
    model = MolfunStructureModel.from_checkpoint(trained.checkpoint)
    assert torch.equal(predictions(model), predictions(trained.trainer.model))

    checkpoint, metrics, _ = train_model("no_val", tmp_path, tiny(), module(valid=None), 2)
    assert metrics is None
    assert (checkpoint / "manifest.json").is_file()


def test_b19_a_run_is_neither_replaced_nor_continued_unasked(tmp_path: Path) -> None:
    """B19: as everywhere in Molfun; a continued run ends with the bits of one that was not cut."""

    class Stop(Callback):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    _, _, whole = train_model("whole", tmp_path, tiny(), module(), 6)
    with pytest.raises(RunError, match="already holds a run"):
        train_model("whole", tmp_path, tiny(), module(), 6)
    _, _, again = train_model("whole", tmp_path, tiny(), module(), 6, overwrite=True)
    assert again.history == whole.history
    with pytest.raises(KeyboardInterrupt):
        train_model("cut", tmp_path, tiny(), module(), 6, callbacks=[Stop()])
    _, _, resumed = train_model("cut", tmp_path, tiny(), module(), 6, resume=True)
    assert resumed.history == whole.history
    assert equal(head(resumed.model), head(whole.model))


def test_b20_every_step_is_logged(tmp_path: Path, caplog: Any) -> None:
    """B20: iteration x/max_steps | global_step | reduced_train_loss | val_loss."""
    caplog.set_level(logging.INFO, logger="molfun.esm2")
    _, _, trainer = train_model("run", tmp_path, tiny(), module(), 5)
    lines = [r.getMessage() for r in caplog.records if r.name == "molfun.esm2.training"]
    pattern = re.compile(
        r"Training epoch (\d+), iteration (\d+)/5 \| global_step: (\d+) \| "
        r"reduced_train_loss: ([\d.e-]+)(?: \| val_loss: ([\d.e-]+))?"
    )
    found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
    assert [int(f[1]) for f in found] == [int(f[2]) for f in found] == [1, 2, 3, 4, 5]
    assert [int(f[0]) for f in found] == [0, 0, 1, 1, 2]
    values = [None if f[4] is None else float(f[4]) for f in found]
    rows = [pytest.approx(row["val_loss"], rel=1e-3) for row in trainer.history]
    assert values == [None, rows[0], rows[0], rows[1], rows[2]]
    # micro batches of equal size: the mean over steps is the mean of the epoch
    means = (float(found[0][3]) + float(found[1][3])) / 2
    assert means == pytest.approx(trainer.history[0]["train_loss"], rel=1e-3)


def test_b20_steps_left_out_are_not_counted_as_steps(tmp_path: Path, caplog: Any) -> None:
    """B20: global_step is what the optimizer did, iteration what was tried."""
    caplog.set_level(logging.INFO, logger="molfun.esm2")
    data = [(DATA[0][0], 1e30), *DATA[1:8]]
    dataset = InMemorySingleValueDataset(data)
    sizes = {"micro_batch_size": 1, "global_batch_size": 4}
    _, _, trainer = train_model(
        "run", tmp_path, tiny(), ESM2FineTuneDataModule(dataset, **sizes), 6
    )
    assert trainer.global_step == 3
    assert trainer.history[-1]["skipped"] == 3
    assert "iteration 6/6 | global_step: 3 |" in caplog.text


@pytest.mark.parametrize(("n", "glob", "steps"), [(8, 4, 6), (10, 8, 10), (3, 8, 3)])
def test_b21_steps_and_epochs(tmp_path: Path, n: int, glob: int, steps: int) -> None:
    """B21: n_steps * global_batch == len(dataset) * epochs, also where it does not divide it."""

    class Count(Callback):
        batches = 0

        def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
            self.batches += 1

    counter = Count()
    data = module(n, 2, glob)
    _, _, trainer = train_model("run", tmp_path, tiny(), data, steps, callbacks=[counter])
    assert trainer.global_step == steps
    epochs = counter.batches * 2 / n
    assert steps * glob == n * epochs
    assert len(trainer.history) == math.ceil(steps / math.ceil(n / glob))
    # a pass misses no sequence
    assert {i for batch in data.train_dataloader() for i in batch.ids} == {
        f"seq_{i + 1}" for i in range(n)
    }


def test_b22_random_weights_where_there_is_no_checkpoint(caplog: Any) -> None:
    """B22: said in the log, and decided by the seed alone."""
    first, same, other = (tiny().configure_model(seed=seed) for seed in (1, 1, 2))
    assert equal(encoder(first), encoder(same))
    assert equal(head(first), head(same))
    assert not equal(encoder(first), encoder(other))
    assert caplog.text.count("starts from random weights (seed 1)") == 2
    assert ESM2FineTuneSeqConfig().initial_ckpt_path is None


# --- inference and demos: B23, B24 ---------------------------------------------------------------


def test_b23_inference_gives_the_regression_output(trained: Run, caplog: Any) -> None:
    """B23: (n, 1) in the order of the dataset; labels are not needed."""
    config = ESM2FineTuneSeqConfig(
        initial_ckpt_path=trained.checkpoint, initial_ckpt_skip_keys_with_these_prefixes=[]
    )
    results = infer_model(config, to_predict(DEMO_SEQUENCES))
    assert results.keys() == {"regression_output"}
    output = results["regression_output"]
    assert (output.shape, output.dtype) == ((10, 1), torch.float32)
    torch.testing.assert_close(output[:, 0].double(), predictions(trained.trainer.model))
    assert "not been trained" not in caplog.text

    infer_model(ESM2FineTuneSeqConfig(initial_ckpt_path=trained.checkpoint), to_predict())
    assert "The head has not been trained" in caplog.text


@pytest.mark.slow
def test_b23_the_command_line_reads_the_checkpoint(trained: Run, tmp_path: Path) -> None:
    """B23: what train_model writes is a checkpoint like any other."""
    table, out = tmp_path / "new.csv", tmp_path / "predictions.csv"
    table.write_text("sequence\n" + "\n".join(DEMO_SEQUENCES) + "\n")
    command = ("-m", "molfun.cli", "predict", trained.checkpoint, "--data", table, "--output", out)
    warm.run(*command, check=True)
    text = out.read_text().splitlines()
    column = text[0].split(",").index("prediction")
    values = [float(line.split(",")[column]) for line in text[1:]]
    np.testing.assert_allclose(values, predictions(trained.trainer.model).numpy(), rtol=1e-4)


@pytest.mark.slow
def test_b24_both_demos_run(tmp_path: Path) -> None:
    """B24: train writes a checkpoint that infer reads; the numbers are near the labels."""

    def demo(*arguments: str) -> str:
        done = warm.run("-m", "molfun.esm2", *arguments, cwd=tmp_path, check=True)
        assert "iteration 50/50" in done.stderr or "train" not in arguments
        return done.stdout

    assert "val_loss" in demo("train", "--output", "experiments")
    checkpoint = tmp_path / "experiments/finetune_regressor/checkpoint"
    assert json.loads((checkpoint / "meta.json").read_text())["backbone"]["name"] == "esm2"
    rows = [line.split() for line in demo("infer", str(checkpoint)).splitlines()[1:]]
    values = np.array([[float(a), float(b)] for a, b in rows])
    np.testing.assert_allclose(values[:, 0], LABELS, atol=0.005)
    assert float(((values[:, 0] - values[:, 1]) ** 2).mean()) <= 0.005


def test_b24_demos_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B24: few steps, random inference, and an error in one line."""
    main(["train", "--output", str(tmp_path), "--steps", "2"])
    assert str(tmp_path / "finetune_regressor" / "checkpoint") in capsys.readouterr().out
    main(["infer"])
    assert len(capsys.readouterr().out.splitlines()) == 11
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--output", str(tmp_path)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")
    main(["train", "--output", str(tmp_path), "--steps", "1", "--overwrite"])


def test_the_public_names_are_these() -> None:
    assert sorted(esm2.__all__) == [
        "ESM2FineTuneDataModule",
        "ESM2FineTuneSeqConfig",
        "ESM2FineTuneSeqModel",
        "FineTuneTrainer",
        "InMemorySingleValueDataset",
        "RegressorLossReduction",
        "StepLog",
        "infer_model",
        "train_model",
    ]
