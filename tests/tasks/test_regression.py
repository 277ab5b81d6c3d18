"""Regression: loss as sum and count, standardised labels, metrics that know when they are not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from molfun.errors import ConfigError, ContractError, DataError
from molfun.tasks import RegressionTask

LABELS = np.array([4.0, 6.5, 8.0, 5.5, 7.0])
REFERENCE = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}


def fitted(**settings) -> RegressionTask:
    task = RegressionTask(**settings)
    task.fit_targets(LABELS)
    return task


@pytest.mark.parametrize("name", REFERENCE)
def test_the_loss_is_torchs(name):
    task = fitted(loss=name)
    prediction = torch.linspace(-3, 3, 5)
    scaled = torch.tensor((LABELS - LABELS.mean()) / LABELS.std(), dtype=torch.float32)
    total, count = task.loss({"prediction": prediction}, task.encode(LABELS.tolist()))
    assert count == 5
    assert float(total) == pytest.approx(
        float(REFERENCE[name](prediction, scaled, reduction="sum"))
    )
    plain = fitted(loss=name, standardize=False)
    total, _ = plain.loss({"prediction": prediction}, plain.encode(LABELS.tolist()))
    expected = REFERENCE[name](prediction, torch.tensor(LABELS).float(), reduction="sum")
    assert float(total) == pytest.approx(float(expected))


def test_missing_labels_do_not_count():
    task = fitted()
    prediction = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    total, count = task.loss({"prediction": prediction}, task.encode([5.0, None, 7.0]))
    one, _ = task.loss({"prediction": prediction[:1]}, task.encode([5.0]))
    other, _ = task.loss({"prediction": prediction[2:]}, task.encode([7.0]))
    assert count == 2
    assert float(total.detach()) == pytest.approx(float((one + other).detach()))
    total.backward()
    assert prediction.grad is not None
    assert prediction.grad[1] == 0


def test_no_label_at_all_is_a_zero_with_a_graph():
    task = fitted()
    prediction = torch.tensor([0.1, 0.2], requires_grad=True)
    total, count = task.loss({"prediction": prediction}, task.encode([None, None]))
    assert (float(total.detach()), count) == (0.0, 0)
    total.backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [0.0, 0.0]


def test_the_loss_is_float32_whatever_the_head_gives():
    task = fitted()
    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert task.loss({"prediction": half}, task.encode([5.0, 6.0])).total.dtype == torch.float32


def test_standardisation_is_undone():
    task = fitted()
    assert task.mean == pytest.approx(LABELS.mean())
    assert task.std == pytest.approx(LABELS.std())
    scaled = torch.tensor((LABELS - task.mean) / task.std)
    back = task.predictions({"prediction": scaled})
    assert back.dtype == torch.float64
    assert back.numpy() == pytest.approx(LABELS, abs=1e-12)


def test_the_first_training_set_decides_the_units():
    task = fitted()
    state = task.state_dict()
    task.fit_targets(np.array([100.0, 200.0]))
    assert task.state_dict() == state


def test_missing_labels_do_not_enter_the_statistics():
    task = RegressionTask()
    task.fit_targets(np.array([4.0, np.nan, 8.0]))
    assert (task.mean, task.std) == (6.0, 2.0)


def test_a_constant_label_keeps_its_units():
    task = RegressionTask()
    task.fit_targets(np.array([5.0, 5.0]))
    assert (task.mean, task.std) == (5.0, 1.0)


def test_a_training_set_without_labels_is_refused():
    with pytest.raises(DataError, match=r"The training set has no labels\. Fill the target column"):
        RegressionTask().fit_targets(np.array([np.nan, np.nan]))


def test_without_standardisation_labels_stay():
    task = fitted(standardize=False)
    assert (task.mean, task.std) == (0.0, 1.0)


def test_state_survives_json():
    task = fitted(loss="huber")
    again = RegressionTask(**json.loads(json.dumps(task.config_dict)))
    assert not again.fitted
    again.load_state_dict(json.loads(json.dumps(task.state_dict())))
    assert again.state_dict() == task.state_dict()
    assert again.config_dict == task.config_dict


def test_an_unknown_loss_gives_the_nearest():
    with pytest.raises(
        ConfigError, match=r"Unknown regression loss 'hubert'; .* Did you mean 'huber"
    ):
        RegressionTask(loss="hubert")


# Metrics


def test_metrics_are_those_of_scipy():
    rng = np.random.default_rng(0)
    predictions = LABELS + rng.normal(size=5)
    result = RegressionTask().metrics(predictions, LABELS)
    error = predictions - LABELS
    assert result == pytest.approx(
        {
            "rmse": np.sqrt(np.mean(error**2)),
            "mae": np.mean(np.abs(error)),
            "pearson": stats.pearsonr(predictions, LABELS).statistic,
            "spearman": stats.spearmanr(predictions, LABELS).statistic,
            "r2": 1 - np.sum(error**2) / np.sum((LABELS - LABELS.mean()) ** 2),
        }
    )


def test_missing_labels_do_not_enter_the_metrics():
    task, with_gap = RegressionTask(), np.append(LABELS, np.nan)
    expected = task.metrics(LABELS + 1, LABELS)
    assert task.metrics(np.append(LABELS + 1, 1e6), with_gap) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predictions", "labels", "undefined"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], {"pearson", "spearman"}),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], {"pearson", "spearman", "r2"}),
        ([1.0], [2.0], {"pearson", "spearman", "r2"}),
        ([1.0, 2.0], [math.nan, math.nan], {"rmse", "mae", "pearson", "spearman", "r2"}),
        ([], [], {"rmse", "mae", "pearson", "spearman", "r2"}),
    ],
)
def test_what_is_undefined_is_nan(predictions, labels, undefined):
    result = RegressionTask().metrics(np.array(predictions), np.array(labels))
    assert {name for name, value in result.items() if math.isnan(value)} == undefined


def test_metrics_of_predictions_that_are_not_numbers_are_not_numbers():
    result = RegressionTask().metrics(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert math.isnan(result["rmse"])
    assert math.isnan(result["pearson"])


# --- labels of several numbers -------------------------------------------------------------------

VECTORS = np.array([[1.0, 0.0, 5.0], [2.0, np.nan, 5.0], [6.0, 4.0, 5.0]])


def test_the_numbers_of_a_vector_have_a_mean_each_and_one_deviation():
    task = RegressionTask(shape=(3,))
    task.fit_targets([*VECTORS, None])
    assert task.n_outputs == 3
    np.testing.assert_allclose(task.mean, [3.0, 2.0, 5.0])
    residuals = (VECTORS - task.mean)[np.isfinite(VECTORS)]
    assert task.std == pytest.approx(residuals.std())
    raw = torch.tensor((VECTORS - task.mean) / task.std)
    again = RegressionTask(**json.loads(json.dumps(task.config_dict)))
    again.load_state_dict(json.loads(json.dumps(task.state_dict())))
    found = again.present(again.split(again.predictions({"prediction": raw}), [1, 1, 1]))
    np.testing.assert_allclose(found["prediction"], VECTORS)
    total, n = again.loss({"prediction": raw}, again.encode([*VECTORS]))
    assert (float(total), n) == (pytest.approx(0, abs=1e-9), 8)


def test_matrices_and_vectors_of_atoms_keep_their_shapes():
    task = RegressionTask(shape=(3, 3), level="sequence")
    task.fit_targets([np.eye(3), 2 * np.eye(3)])
    assert task.encode([np.eye(3), None]).shape == (2, 9)
    assert task.present([np.arange(9.0)] * 2)["prediction"].shape == (2, 3, 3)
    task = RegressionTask(shape=(3,), level="residue")
    labels = [np.ones((2, 3)), None, np.zeros((4, 3))]
    task.fit_targets(labels)
    assert task.encode(labels, [2, 3, 4]).shape == (3, 4, 3)
    rows = task.split(task.encode(labels, [2, 3, 4]), [2, 3, 4])
    assert [row.shape for row in task.present(rows)["prediction"]] == [(2, 3), (3, 3), (4, 3)]
    joined = task.join(rows)
    assert joined.shape == (9, 3)
    assert task.metrics(joined, joined)["rmse"] == 0.0


def test_each_component_varies_around_its_own_mean():
    task = RegressionTask(shape=(2,))
    labels = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    means = np.tile(labels.mean(0), (3, 1))
    found = task.metrics(means, labels)
    assert found["r2"] == pytest.approx(0.0)
    assert found["rmse"] == pytest.approx(np.sqrt(2 / 3))
    assert task.metrics(labels, labels)["r2"] == 1.0


@pytest.mark.parametrize(
    ("settings", "label", "text"),
    [
        ({}, [1.0, 2.0, 3.0], "has the shape (3,), and the task takes one number. Say so with "
         "task_config={'shape': [3]}, or level='residue'"),
        ({"shape": (3,)}, 1.0, "has the shape (), and the task takes 3 numbers (3,)."),
        ({"level": "residue"}, np.ones((4, 3)), "the task takes one number for each residue or at"),
        ({}, "metal", "A label is made of numbers, got 'metal'. Classes are for the tasks"),
    ],
)  # fmt: skip
def test_a_label_of_another_shape_is_named(settings, label, text):
    with pytest.raises(DataError) as caught:
        RegressionTask(**settings).fit_targets([label])
    assert text in str(caught.value)


@pytest.mark.parametrize("shape", [(0,), (-3,), (10**9,)])
def test_a_shape_has_numbers(shape):
    with pytest.raises(ConfigError, match="is no shape of a label"):
        RegressionTask(shape=shape)


def test_labels_that_this_task_does_not_use_are_counted():
    labels = [{"energy": 1.0, "forces": np.zeros((2, 3))}, {"energy": 2.0}, None]
    text = RegressionTask().gaps(labels)
    assert "1 of 3 training samples have no label." in text
    assert "1 of 3 training structures have forces or stress, which this task does not use" in text


def test_a_head_that_keeps_the_last_dimension_is_refused():
    task = RegressionTask()
    task.fit_targets([1.0, 2.0, 3.0])
    outputs = {"prediction": torch.zeros(3, 1, requires_grad=True)}
    with pytest.raises(ContractError, match=r"predicts the shape \(3, 1\) for labels of .* \(3,\)"):
        task.loss(outputs, torch.tensor([1.0, 2.0, 3.0]))
