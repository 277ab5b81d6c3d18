"""A function as the loss: what it must return, and what checkpoints and resumed runs know of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from molfun import FullFinetune, HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.data import DataSplitter
from molfun.errors import ConfigError, ContractError, RunError
from molfun.models.cross_validation import cross_validate
from molfun.registry import LOSSES
from molfun.sample import Sample
from molfun.tasks import EnergyTask, MultiTargetTask, RegressionTask
from molfun.tasks import losses as own
from molfun.tasks.chosen_loss import choose
from molfun.training import Callback

Tensor = torch.Tensor
TEXTS = ["MKV", "ACDEF", "GGSG", "PQRSTV", "LLLL", "MNPQ", "WWAC", "KKE"]


def cubic(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs().pow(3).sum()


def quartic(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).pow(4).sum()


def of_pairs(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction[:, None] - target[None]).square().sum()


def squares(prediction: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
    return scale * (prediction - target).square().sum()


class Named:
    """An object that is called."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cubic(prediction, target)


def samples() -> list[Sample]:
    return [Sample(id=f"s{i}", sequence=s, target=float(i % 5)) for i, s in enumerate(TEXTS)]


def made(loss: object, **settings: object) -> MolfunStructureModel:
    return MolfunStructureModel(
        "esm2_tiny", head="linear", device="cpu", task_config={"loss": loss, **settings}
    )


def weights(model: MolfunStructureModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def registered() -> Iterator[str]:
    LOSSES["cubic_here"] = cubic  # type: ignore[assignment]
    yield "cubic_here"
    del LOSSES._entries["cubic_here"]


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, t: functional.mse_loss(p, t, reduction="sum"),
        partial(functional.mse_loss, reduction="sum"),
        nn.MSELoss(reduction="sum"),
        squares,
        own.mse,
    ],
)
def test_a_function_trains_as_the_registered_loss_does(loss: Callable[..., Tensor]) -> None:
    found = []
    for one in (loss, "mse"):
        model = made(one)
        model.fit(samples(), samples(), strategy=FullFinetune(), epochs=2, seed=1)
        found.append(weights(model))
    assert torch.equal(*found)


def test_a_registered_function_is_its_name(registered: str) -> None:
    assert RegressionTask(loss=cubic).config_dict == RegressionTask(loss=registered).config_dict
    assert RegressionTask(loss=own.spearman).config_dict["loss"] == "spearman"
    # one with the name of another function is not this one
    alias = partial(own.mse)
    assert RegressionTask(loss=alias).config_dict["loss"]["function"] == "molfun.tasks.losses:mse"


def test_what_compares_samples_is_found_out() -> None:
    assert not RegressionTask(loss=of_pairs).sums_samples
    assert RegressionTask(loss=cubic).sums_samples
    with pytest.raises(ConfigError, match=r"loss='.*:of_pairs' ranks samples by one number"):
        RegressionTask(loss=of_pairs, level="residue")
    again = RegressionTask(**json.loads(json.dumps(RegressionTask(loss=of_pairs).config_dict)))
    assert not again.sums_samples

    def listwise(prediction: Tensor, target: Tensor) -> Tensor:
        return cubic(prediction, target)

    listwise.ranks = True  # type: ignore[attr-defined]
    assert not RegressionTask(loss=listwise).sums_samples


def test_sample_weights_weigh_a_function_and_refuse_one_that_compares(tmp_path: Path) -> None:
    lines = [f"{s},{i % 5},{1 + i % 2}" for i, s in enumerate(TEXTS)]
    (tmp_path / "a.csv").write_text("sequence,target,n\n" + "\n".join(lines) + "\n")
    data = SequenceDataset.from_csv(tmp_path / "a.csv").weighted_by("n")
    found = []
    for loss in (squares, "mse"):
        model = made(loss)
        model.fit(data, strategy="head_only", epochs=2)
        found.append(weights(model))
    assert torch.equal(*found)
    with pytest.raises(ConfigError, match=r"the loss '.*:of_pairs' compares them with each other"):
        made(of_pairs).fit(data, strategy="head_only", epochs=1)


def test_options_are_passed_and_checked() -> None:
    outputs = {"prediction": torch.tensor([1.0, 3.0])}
    task = RegressionTask(loss=squares, loss_config={"scale": 2.0}, standardize=False)
    assert float(task.loss(outputs, torch.zeros(2).double()).total) == 20.0
    with pytest.raises(ConfigError, match=r"Unknown option of the loss .*:squares 'scal'.*'scale'"):
        RegressionTask(loss=squares, loss_config={"scal": 2.0})


def test_several_properties_take_a_function() -> None:
    task = MultiTargetTask(targets=["a", "b"], loss=cubic)
    labels = [[1.0, 2.0], [3.0, float("nan")], [5.0, 8.0]]
    task.fit_targets(labels)
    found = task.loss({"prediction": torch.zeros(3, 2)}, task.encode(labels))
    named = (torch.tensor(labels).double() - torch.tensor(task.mean)) / torch.tensor(task.std)
    assert found.n_labels == 5
    assert float(found.total) == pytest.approx(float(named.nan_to_num().abs().pow(3).sum()))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda p, t: 3.0, "returns float. Return a tensor: the sum over the labels"),
        (lambda p, t: (p - t) ** 2, r"returns the shape \(4,\). Return one number: the sum"),
        (lambda p, t: (p - t).detach().sum(), "returns a number without a gradient"),
        (lambda p, t: ((p - t) * float("nan")).sum(), "four predictions and labels, it gives nan"),
        (functional.mse_loss, r"mse_loss returns the mean over labels, and must return the sum"),
        (lambda p: p.sum(), r"cannot be called as loss\(prediction, target\): too many"),
        (lambda p, t: p.nothing(), "cannot be used: tried on four .* AttributeError: 'Tensor'"),
        (Named, "test_chosen_loss:Named is a class. Give an object of it"),
        ("test_chosen_loss:cubic", "give a function itself, not its name as text"),
        (3, "Unknown regression loss 3"),
        ({"function": "a:b"}, "stands for no loss. Give a registered name, or a function"),
    ],
)
def test_what_is_no_loss_is_refused_at_once(loss: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as found:
        made(loss)
    assert "\n" not in str(found.value)


def test_a_loss_with_weights_is_refused() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            return self.scale * cubic(prediction, target)

    with pytest.raises(ConfigError, match="Learned has weights, which no strategy trains"):
        made(Learned())
    made(Learned().requires_grad_(requires_grad=False))


def test_tasks_of_named_losses_refuse_a_function() -> None:
    with pytest.raises(ConfigError, match="energy loss is one of mse, mae, huber, by name"):
        EnergyTask(loss=cubic)  # type: ignore[arg-type]


def test_a_wrong_return_in_training_is_one_line() -> None:
    def each_of_many(prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction - target) ** 2
        return error if len(error) > 4 else error.sum()

    def nan_of_many(prediction: Tensor, target: Tensor) -> Tensor:
        return cubic(prediction, target) * (float("nan") if len(prediction) > 4 else 1.0)

    for loss, text in (
        (each_of_many, r"each_of_many returns the shape \(8,\)"),
        (nan_of_many, r"nan_of_many gives NaN for 8 labels, with predictions from .* Make it"),
    ):
        with pytest.raises(ContractError, match=text):
            made(loss).fit(samples(), strategy="head_only", epochs=1)
        # it stands in an evaluation as well
        model = made(loss)
        model.task.fit_targets([1.0, 2.0])  # type: ignore[union-attr]
        with pytest.raises(ContractError, match=text):
            model.evaluate(samples())


def test_a_loss_of_positive_numbers_can_be_tried() -> None:
    def logs(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.log() - target.log()).square().sum()

    assert RegressionTask(loss=logs, standardize=False).sums_samples


def test_batches_without_labels_do_not_reach_it() -> None:
    def worst(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().max()  # fails of nothing

    prediction = torch.zeros(2, requires_grad=True)
    found = RegressionTask(loss=worst).loss({"prediction": prediction}, torch.full((2,), torch.nan))
    assert (float(found.total.detach()), found.n_labels) == (0.0, 0)
    found.total.backward()


def test_random_numbers_of_a_loss_do_not_move_those_of_the_user() -> None:
    def noisy(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target + torch.randn(len(prediction))).square().sum()

    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    first, second = (RegressionTask(loss=noisy).config_dict for _ in range(2))
    assert first == second
    assert torch.equal(torch.randn(2), expected)


@pytest.mark.parametrize("loss", [cubic, lambda p, t: cubic(p, t), Named()])
def test_a_checkpoint_holds_the_name_and_predicts(
    loss: Callable[..., Tensor], tmp_path: Path
) -> None:
    model = made(loss)
    model.fit(samples(), strategy="head_only", epochs=1)
    scores = model.evaluate(samples())
    model.save(tmp_path / "model")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "model", device="cpu")
    assert torch.equal(
        loaded.predict(samples())["prediction"], model.predict(samples())["prediction"]
    )
    name = loaded.task.config_dict["loss"]["function"]  # type: ignore[union-attr]
    text = (
        rf"was trained with the loss {name}, a function, which .* model.task.use_loss\(function\)"
    )
    for use in (
        lambda: loaded.evaluate(samples()),
        lambda: loaded.fit(samples(), strategy="head_only", epochs=1),
    ):
        with pytest.raises(ConfigError, match=text) as found:
            use()
        assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match=r"quartic is not the loss .* of the training: for four"):
        loaded.task.use_loss(quartic)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"use_loss takes the function .*, got 'mse'"):
        loaded.task.use_loss("mse")  # type: ignore[union-attr,arg-type]
    loaded.save(tmp_path / "copy")  # nothing is lost
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "copy", device="cpu")
    loaded.task.use_loss(loss)  # type: ignore[union-attr]
    assert loaded.evaluate(samples()) == scores
    loaded.fit(samples(), strategy="head_only", epochs=1)


def test_a_file_cannot_name_what_is_imported(tmp_path: Path) -> None:
    model = made(cubic)
    model.fit(samples(), strategy="head_only", epochs=1)
    config = model.task._config["loss"]  # type: ignore[union-attr]
    config["function"] = "antigravity:fly"
    model.save(tmp_path / "model")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "model", device="cpu")
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigError, match="the loss antigravity:fly, a function"):
        loaded.evaluate(samples())
    del config["ranks"]
    model.save(tmp_path / "model")
    with pytest.raises(ConfigError, match="stands for no loss"):
        MolfunStructureModel.from_checkpoint(tmp_path / "model", device="cpu")


def test_a_loaded_model_finds_a_function_that_is_registered(tmp_path: Path) -> None:
    model = made(cubic)
    model.fit(samples(), strategy="head_only", epochs=1)
    model.save(tmp_path / "model")
    LOSSES["cubic_here"] = cubic  # type: ignore[assignment]
    try:
        loaded = MolfunStructureModel.from_checkpoint(tmp_path / "model", device="cpu")
        assert loaded.evaluate(samples()) == model.evaluate(samples())
    finally:
        del LOSSES._entries["cubic_here"]


def test_a_model_built_with_the_function_loads_the_checkpoint(tmp_path: Path) -> None:
    model = made(cubic)
    model.fit(samples(), strategy="head_only", epochs=1)
    model.save(tmp_path / "model")
    assert made(cubic).load(tmp_path / "model").evaluate(samples()) == model.evaluate(samples())


def test_a_resumed_run_has_the_same_function(tmp_path: Path) -> None:
    whole = made(cubic)
    whole.fit(
        samples(), samples(), strategy=HeadOnlyFinetune(), epochs=4, output_dir=tmp_path / "a"
    )

    class Early(Callback):
        def on_epoch_end(self, row: object, *args: object) -> None:
            if row["epoch"] == 2:  # type: ignore[index]
                raise KeyError("stop")

    run = {"strategy": HeadOnlyFinetune(), "epochs": 4, "output_dir": tmp_path / "b"}
    with pytest.raises(KeyError):
        made(cubic).fit(samples(), samples(), callbacks=[Early()], **run)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="quartic"):
        made(quartic).fit(samples(), samples(), resume=True, **run)  # type: ignore[arg-type]
    stopped = made(cubic)
    stopped.fit(samples(), samples(), resume=True, **run)  # type: ignore[arg-type]
    assert torch.equal(weights(stopped), weights(whole))


def test_two_lambdas_of_one_name_are_told_apart(tmp_path: Path) -> None:
    run = {"strategy": HeadOnlyFinetune(), "output_dir": tmp_path / "b"}
    made(lambda p, t: cubic(p, t)).fit(samples(), epochs=1, **run)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="gives"):
        made(lambda p, t: quartic(p, t)).fit(samples(), epochs=1, resume=True, **run)  # type: ignore[arg-type]


def test_folds_train_with_a_function() -> None:
    data = SequenceDataset.from_list([(s, float(i)) for i, s in enumerate(TEXTS)])
    folds = DataSplitter.k_fold(data, 2)
    found = [
        cross_validate(lambda: made(loss), data, folds, strategy="head_only", epochs=1)  # noqa: B023
        for loss in (squares, "mse")
    ]
    assert found[0].pooled() == found[1].pooled()


def test_a_function_that_compares_labels_survives_a_batch_of_one() -> None:
    def correlation(prediction: Tensor, target: Tensor) -> Tensor:
        p, t = prediction - prediction.mean(), target - target.mean()
        return 1 - (p * t).sum() / (p.norm() * t.norm())  # NaN for one label

    def of_two(prediction: Tensor, target: Tensor) -> Tensor:
        if len(prediction) < 2:
            raise ValueError("needs two")
        return correlation(prediction, target)

    data = [("MKVLA"[: 2 + i % 4] + "ACDEFGHIK"[i], float(i)) for i in range(5)]
    for loss in (correlation, of_two):
        assert choose(loss).ranks
        model = MolfunStructureModel(
            "esm2_tiny", head="linear", task_config={"loss": loss}, device="cpu"
        )
        loader = DataLoader(
            SequenceDataset.from_list(data), batch_size=4, collate_fn=SequenceDataset.collate_fn
        )
        history = model.fit(loader, strategy="head_only", epochs=1)
        assert math.isfinite(history[0]["train_loss"])


def test_a_mean_that_is_small_is_no_sum() -> None:
    with pytest.raises(ConfigError, match="returns the mean over labels, and must return the sum"):
        choose(lambda p, t: 1e-9 * (p - t).pow(2).mean())
