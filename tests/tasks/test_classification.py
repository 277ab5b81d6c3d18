"""Classes and contacts: losses are torch's, metrics scikit-learn's, NaN where undefined."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from molfun import FullFinetune, MolfunStructureModel
from molfun.errors import ConfigError, DataError
from molfun.tasks import BinaryTask, ContactTask, MulticlassTask, MultilabelTask
from molfun.tasks.classes import natural

SEED = 0


def raw(*shape: int, requires_grad: bool = False) -> torch.Tensor:
    """What a head may give."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(*shape, generator=generator).requires_grad_(requires_grad)


def probabilities(*shape: int) -> np.ndarray:
    return torch.softmax(raw(*shape).double(), -1).numpy()


def through(task, outputs, labels, lengths):
    """Predictions and labels of one batch as `metrics` takes them."""
    predictions = task.split(task.predictions({"prediction": outputs}), lengths)
    targets = task.split(task.encode(labels, lengths), lengths)
    return task.join(predictions), task.join(targets)


# Losses


@pytest.mark.parametrize("task", [BinaryTask(classes="ab"), MulticlassTask(classes="abc")])
def test_the_loss_of_one_class_is_torchs(task):
    labels = ["b", "a", "b", "a", task.classes[-1]]
    logits = raw(5, task.n_outputs)
    indices = torch.tensor([task.classes.index(label) for label in labels])
    total, count = task.loss({"prediction": logits}, task.encode(labels))
    assert count == 5
    assert float(total) == pytest.approx(
        float(functional.cross_entropy(logits, indices, reduction="sum"))
    )


@pytest.mark.parametrize("task", [BinaryTask, MulticlassTask])
def test_the_loss_of_two_classes_is_that_of_two_logits(task):
    two = task(classes=["no", "yes"])
    logits = raw(4, 2)
    total, count = two.loss({"prediction": logits}, two.encode(["yes", "no", "no", "yes"]))
    positive = functional.binary_cross_entropy_with_logits(
        logits[:, 1] - logits[:, 0], torch.tensor([1.0, 0.0, 0.0, 1.0]), reduction="sum"
    )
    assert (two.n_outputs, count) == (2, 4)
    assert float(total) == pytest.approx(float(positive))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_loss_of_several_classes_is_torchs(n):
    names = list("abc"[:n])
    task = MultilabelTask(classes=names)
    labels = [names, [], names[:1], ";".join(names)]
    truth = torch.tensor([[float(c in label) for c in names] for label in labels])
    logits = raw(4, n)
    total, count = task.loss({"prediction": logits.squeeze(-1)}, task.encode(labels))
    assert count == 4 * n
    assert float(total) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum"))
    )


def test_the_loss_of_residues_is_the_sum_over_those_with_a_label():
    task = MulticlassTask(classes=["C", "E", "H"], level="residue")
    logits = raw(2, 4, 3, requires_grad=True)
    targets = task.encode(["CE", ["H", None, math.nan, "E"]], [2, 4])
    total, count = task.loss({"prediction": logits}, targets)
    chosen = torch.stack([logits[0, 0], logits[0, 1], logits[1, 0], logits[1, 3]])
    expected = functional.cross_entropy(chosen, torch.tensor([0, 1, 2, 1]), reduction="sum")
    assert count == 4
    assert float(total.detach()) == pytest.approx(float(expected.detach()))
    total.backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[True, True, False, False], [True, False, False, True]]


def test_the_loss_of_several_classes_a_residue_leaves_out_what_is_masked():
    task = MultilabelTask(classes=["a", "b"], level="residue")
    logits = raw(2, 3, 2)
    total, count = task.loss(
        {"prediction": logits}, task.encode([[["a"], None, ["a", "b"]], [[]]], [3, 1])
    )
    chosen = torch.stack([logits[0, 0], logits[0, 2], logits[1, 0]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert count == 6
    assert float(total) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(chosen, truth, reduction="sum"))
    )


def test_the_loss_of_contacts_counts_no_near_pairs():
    task = ContactTask(min_separation=2)
    truth = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, np.nan]])
    logits = raw(1, 4, 4, requires_grad=True)
    total, count = task.loss({"prediction": logits}, task.encode([truth], [4]))
    far = [(0, 2), (0, 3), (1, 3), (2, 0), (3, 0), (3, 1)]
    chosen = torch.stack([logits[0, i, j] for i, j in far])
    labels = torch.tensor([float(truth[i, j]) for i, j in far])
    assert count == 6
    assert float(total.detach()) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(chosen, labels, reduction="sum").detach())
    )
    assert truth[0, 0] == 1, "the map of the user stays as it is"


MASKED = [
    (BinaryTask(classes="ab", label_smoothing=0.1), (3, 2)),
    (MulticlassTask(classes="abc", class_weight=[1, 2, 3]), (3, 3)),
    (MultilabelTask(classes="ab", class_weight=[1, 2]), (3, 2)),
    (MultilabelTask(classes="a"), (3,)),
]


@pytest.mark.parametrize(("task", "shape"), MASKED)
def test_missing_labels_do_not_count(task, shape):
    task.fit_targets(["a"])
    logits = raw(*shape, requires_grad=True)
    total, count = task.loss({"prediction": logits}, task.encode(["a", None, math.nan]))
    one, count_of_one = task.loss({"prediction": logits[:1]}, task.encode(["a"]))
    assert count == count_of_one > 0
    assert float(total.detach()) == pytest.approx(float(one.detach()))
    total.backward()
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1:].abs().sum() == 0


@pytest.mark.parametrize(
    ("task", "shape", "lengths"),
    [
        *((task, shape, None) for task, shape in MASKED),
        (MulticlassTask(classes="abc", level="residue"), (3, 4, 3), [4, 2, 3]),
        (MultilabelTask(classes="ab", level="residue"), (3, 4, 2), [4, 2, 3]),
        (ContactTask(), (3, 4, 4), [4, 2, 3]),
    ],
)
def test_no_label_at_all_is_a_zero_with_a_graph(task, shape, lengths):
    logits = raw(*shape, requires_grad=True)
    total, count = task.loss({"prediction": logits}, task.encode([None] * 3, lengths))
    assert (float(total.detach()), count) == (0.0, 0)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("task", "shape", "label"),
    [
        (BinaryTask(classes="ab"), (1, 2), "a"),
        (MultilabelTask(classes="ab"), (1, 2), "a"),
        (ContactTask(min_separation=0), (1, 2, 2), np.eye(2)),
    ],
)
def test_the_loss_is_float32_whatever_the_head_gives(task, shape, label):
    lengths = [2] if task.level == "pair" else None
    targets = task.encode([label], lengths)
    assert targets.dtype == torch.float64
    half = {"prediction": raw(*shape).bfloat16()}
    assert task.loss(half, targets).total.dtype == torch.float32
    assert task.predictions(half).dtype == torch.float64


# Weights and smoothing


LABELS = ["a"] * 5 + ["b"] * 3 + ["c"] * 2


def test_balanced_weights_are_those_of_sklearn():
    task = MulticlassTask(classes="abc", class_weight="balanced")
    task.fit_targets([*LABELS, None, math.nan])
    expected = compute_class_weight("balanced", classes=np.array(list("abc")), y=LABELS)
    assert task.weight == pytest.approx(expected.tolist())
    logits = raw(10, 3)
    total, count = task.loss({"prediction": logits}, task.encode(LABELS))
    indices = torch.tensor(["abc".index(label) for label in LABELS])
    weighted = functional.cross_entropy(
        logits, indices, weight=torch.tensor(expected).float(), reduction="sum"
    )
    assert count == 10
    assert float(total) == pytest.approx(float(weighted))


def test_balanced_weights_count_residues_and_not_sequences():
    task = MulticlassTask(classes="abc", class_weight="balanced", level="residue")
    task.fit_targets(["aaa", ["a", None, "a", "b"], list("bbcc"), None])
    expected = compute_class_weight("balanced", classes=np.array(list("abc")), y=LABELS)
    assert task.weight == pytest.approx(expected.tolist())


def test_a_class_that_is_not_in_the_training_set_weighs_one():
    task = MulticlassTask(classes="abcd", class_weight="balanced")
    task.fit_targets(LABELS)
    expected = compute_class_weight("balanced", classes=np.array(list("abc")), y=LABELS)
    assert task.weight == pytest.approx([*expected, 1.0])


def test_balanced_weights_of_several_classes_are_negatives_over_positives():
    task = MultilabelTask(classes="abc", class_weight="balanced")
    labels = [["a"], ["a", "b"], [], ["a"], None]
    task.fit_targets(labels)
    assert task.weight == [1 / 3, 3.0, 1.0]
    logits = raw(5, 3)
    total, _ = task.loss({"prediction": logits}, task.encode(labels))
    truth = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    expected = functional.binary_cross_entropy_with_logits(
        logits[:4], truth, pos_weight=torch.tensor([1 / 3, 3.0, 1.0]), reduction="sum"
    )
    assert float(total) == pytest.approx(float(expected))


def test_a_class_that_every_label_has_still_trains():
    task = MultilabelTask(classes="ab", class_weight="balanced")
    task.fit_targets([["a"], ["a", "b"], ["a"]])
    assert task.weight == [1 / 3, 2.0]


def test_balanced_weights_of_several_classes_a_residue_are_negatives_over_positives():
    task = MultilabelTask(classes="ab", class_weight="balanced", level="residue")
    task.fit_targets([[["a"], [], ["a", "b"]], [["a"], None]])
    assert task.weight == [1 / 3, 3.0]


def test_a_class_that_a_label_names_twice_counts_once():
    task = MultilabelTask(classes="ab", class_weight="balanced")
    task.fit_targets(["a;a", ["a", "a"], "b", ""])
    assert task.weight == [1.0, 3.0]


def test_weights_of_the_user_are_taken_as_they_are():
    task = MulticlassTask(classes="abc", class_weight=np.array([0.5, 1, 4]))
    task.fit_targets(LABELS)
    assert task.weight == [0.5, 1.0, 4.0]
    logits = raw(2, 3)
    total, _ = task.loss({"prediction": logits}, task.encode(["c", "a"]))
    expected = functional.cross_entropy(
        logits, torch.tensor([2, 0]), weight=torch.tensor([0.5, 1, 4]), reduction="sum"
    )
    assert float(total) == pytest.approx(float(expected))


def test_without_class_weight_there_is_none():
    task = BinaryTask(classes="ab")
    task.fit_targets(["a", "a", "b"])
    assert task.weight is None


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_label_smoothing_is_torchs(weight):
    task = MulticlassTask(classes="abc", label_smoothing=0.2, class_weight=weight)
    task.fit_targets(LABELS)
    logits = raw(3, 3)
    total, _ = task.loss({"prediction": logits}, task.encode(["a", None, "c"]))
    expected = functional.cross_entropy(
        logits[[0, 2]],
        torch.tensor([0, 2]),
        weight=None if weight is None else torch.tensor(weight),
        label_smoothing=0.2,
        reduction="sum",
    )
    plain = functional.cross_entropy(logits[[0, 2]], torch.tensor([0, 2]), reduction="sum")
    assert float(total) == pytest.approx(float(expected))
    assert float(total) != pytest.approx(float(plain))


# Class names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 2, 2, 9], ["2", "9", "10"]),
        ([1.0, 0.0, 0.5], ["0", "0.5", "1"]),
        (np.array([3.0, 1.0, np.nan, 2.0]), ["1", "2", "3"]),
        ([True, False, np.True_, None], ["0", "1"]),
        (["low", " high", "low "], ["high", "low"]),
        (["10", "9", "b", "-1", "a"], ["-1", "9", "10", "a", "b"]),
    ],
)
def test_class_names_come_from_the_labels(labels, names):
    task = MulticlassTask(n_classes=len(names))
    assert task.classes is None
    task.fit_targets(labels)
    assert task.classes == names == MulticlassTask.classes_in(labels)
    assert [int(task.numbers(name)) for name in names] == list(range(len(names)))


def test_one_class_has_one_name_however_it_is_written():
    task = MulticlassTask(n_classes=2)
    task.fit_targets([0, 1.0, np.int64(1), np.float32(0), "1", True])
    assert task.classes == ["0", "1"]
    assert task.encode([1, 1.0, "1", True, np.int8(1)]).tolist() == [1.0] * 5


def test_class_names_of_residues_and_of_several_classes():
    assert MulticlassTask.classes_in(["HHC", [None, "E"], None], "residue") == ["C", "E", "H"]
    assert MultilabelTask.classes_in(["b; a", "", ["c"], None]) == ["a", "b", "c"]
    assert MultilabelTask.classes_in([[["b"], None, []], [["a"]]], "residue") == ["a", "b"]


def test_the_second_of_two_sorted_labels_is_the_positive_one():
    task = BinaryTask()
    task.fit_targets(["yes", "no", "yes"])
    assert task.encode(["yes", "no"]).tolist() == [1.0, 0.0]
    given = BinaryTask(classes=["yes", "no"])
    assert given.encode(["yes", "no"]).tolist() == [0.0, 1.0]


def test_two_classes_also_as_one_of_many_and_as_any_number():
    """Both crash where two classes are taken for one logit."""
    one, several = MulticlassTask(n_classes=2), MultilabelTask(n_classes=2)
    one.fit_targets(["a", "b"])
    several.fit_targets(["a;b", ""])
    assert one.n_outputs == several.n_outputs == 2
    assert one.predictions({"prediction": raw(3, 2)}).sum(-1).numpy() == pytest.approx([1, 1, 1])
    probs = several.predictions({"prediction": torch.zeros(3, 2)})
    assert probs.tolist() == [[0.5, 0.5]] * 3
    assert several.present(list(probs.numpy()))["prediction"] == [["a", "b"]] * 3
    truth = several.encode(["a", "b", "a;b"]).numpy()
    assert several.metrics(truth, truth)["f1_micro"] == 1


def test_the_first_training_set_decides_names_and_weights():
    task = MulticlassTask(n_classes=3, class_weight="balanced")
    task.fit_targets(LABELS)
    state = task.state_dict()
    task.fit_targets(["c"] * 7 + ["a"])
    assert task.state_dict() == state


def test_classes_that_do_not_occur_keep_a_place():
    task = MulticlassTask(n_classes=4)
    task.fit_targets(["b", "a"])
    assert task.classes == ["a", "b", "unseen_0", "unseen_1"]
    assert task.n_outputs == 4


@pytest.mark.parametrize(
    ("task", "labels", "bad"),
    [
        (MulticlassTask(classes=["alpha", "beta"]), ["alpha", "betta"], "betta"),
        (MultilabelTask(classes=["alpha", "beta"]), ["alpha;beta", "betta"], "betta"),
        (MulticlassTask(classes=["alpha", "beta"], level="residue"), [["alpha", "betta"]], "betta"),
    ],
)
def test_an_unknown_class_is_named_with_the_nearest(task, labels, bad):
    text = rf"1 unknown class.* in the labels; known: alpha, beta:\n  '{bad}' Did you mean 'beta'\?"
    with pytest.raises(DataError, match=text):
        task.fit_targets(labels)
    with pytest.raises(DataError, match=text):
        task.encode(labels)
    assert not task.fitted


def test_all_unknown_classes_are_listed_at_once():
    with pytest.raises(DataError, match=r"2 unknown classes.*\n  'x'\n  'y'$"):
        MulticlassTask(classes=["a", "b"]).fit_targets(["x", "a", "y", "x"])


def test_more_classes_than_announced():
    with pytest.raises(
        DataError,
        match=r"The labels have 3 classes \(a, b, c\), the task 2\. Set n_classes=3, or correct",
    ):
        BinaryTask().fit_targets(["a", "b", "c"])
    with pytest.raises(DataError, match=r"have 12 classes \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)"):
        MulticlassTask(n_classes=3).fit_targets(list(range(12)))


@pytest.mark.parametrize(
    "task", [BinaryTask(), MulticlassTask(n_classes=3), MultilabelTask(n_classes=3)]
)
@pytest.mark.parametrize("labels", [[], [None, None], np.array([np.nan])])
def test_a_training_set_without_labels_is_refused(task, labels):
    with pytest.raises(DataError, match=r"The training set has no labels\. Fill the target column"):
        task.fit_targets(labels)


@pytest.mark.parametrize("task", [MulticlassTask, MultilabelTask])
def test_a_training_set_of_masked_residues_is_refused(task):
    with pytest.raises(DataError, match=r"The training set has no labels"):
        task(classes="abc", level="residue").fit_targets([[None, None], [math.nan]])


def test_a_contact_map_without_far_pairs_is_no_label():
    with pytest.raises(DataError, match=r"no labels\. Give a contact map for each sample"):
        ContactTask(min_separation=6).fit_targets([np.ones((6, 6)), None])
    task = ContactTask(min_separation=5)
    task.fit_targets([np.ones((6, 6)), None])
    assert task.fitted


def test_a_missing_label_may_be_float32():
    task = MulticlassTask(n_classes=2, level="residue")
    task.fit_targets([np.array([0, 1, np.nan], np.float32)])
    assert task.classes == ["0", "1"]


def test_a_blank_label_is_refused_before_training():
    with pytest.raises(DataError, match="blank"):
        MulticlassTask(classes=["a", "b"]).fit_targets(["a", "b", ""])


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (MulticlassTask(n_classes=2), ["a", None, " ", "b", ""]),
        (MulticlassTask(n_classes=2, level="residue"), ["ab", None, ["a", ""], "b", "a b"]),
        (MultilabelTask(n_classes=2), ["a;b", None, ["a", ""], "", [" "]]),
    ],
)
def test_the_first_blank_label_is_named(task, labels):
    text = r"2 of 5 samples have a blank label, the first of them sample 3\. Fill it in, or give"
    with pytest.raises(DataError, match=text):
        task.fit_targets(labels)
    assert (task.classes, task.fitted) == (None, False)


def test_the_order_of_classes_does_not_depend_on_that_of_the_labels():
    orders = itertools.permutations(["2", "nan", "10", "b"])
    assert {tuple(sorted(order, key=natural)) for order in orders} == {("2", "10", "b", "nan")}


# Metrics

TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], dtype=np.float64)


def test_metrics_of_three_classes_are_those_of_sklearn():
    probs = probabilities(10, 3)
    hard, truth = probs.argmax(-1), TRUTH.astype(int)
    result = MulticlassTask(n_classes=3).metrics(probs, TRUTH)
    one_hot = np.eye(3)[truth]
    assert result == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, hard),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, hard),
            "f1": reference.f1_score(truth, hard, average="macro"),
            "mcc": reference.matthews_corrcoef(truth, hard),
            "auroc": reference.roc_auc_score(truth, probs, multi_class="ovr"),
            "auprc": reference.average_precision_score(one_hot, probs, average="macro"),
        }
    )
    assert 0 < result["accuracy"] < 1, "a case that tells the metrics apart"
    assert len(set(result.values())) == 6


@pytest.mark.parametrize("task", [BinaryTask(), MulticlassTask(n_classes=2)])
def test_metrics_of_two_classes_are_those_of_the_second(task):
    positive = np.array([0.1, 0.6, 0.4, 0.9, 0.3, 0.8])
    truth = np.array([0.0, 0, 1, 1, 1, 1])
    result = task.metrics(np.stack([1 - positive, positive], -1), truth)
    # by hand: tp 2, fp 1, fn 2, tn 1; of 8 pairs (negative, positive) 6 are in order
    assert result == pytest.approx(
        {
            "accuracy": 3 / 6,
            "balanced_accuracy": (1 / 2 + 2 / 4) / 2,
            "f1": 4 / 7,
            "mcc": (2 * 1 - 1 * 2) / math.sqrt(3 * 4 * 2 * 3),
            "auroc": 6 / 8,
            "auprc": reference.average_precision_score(truth, positive),
        }
    )


def test_classes_that_do_not_occur_do_not_enter_the_means():
    probs = probabilities(10, 3)
    truth = np.where(TRUTH == 2, 0, TRUTH)
    result = MulticlassTask(n_classes=3).metrics(probs, truth)
    assert result["auroc"] == pytest.approx(
        np.mean([reference.roc_auc_score(truth == c, probs[:, c]) for c in (0, 1)])
    )
    assert result["f1"] == pytest.approx(
        reference.f1_score(truth, probs.argmax(-1), labels=[0, 1], average="macro")
    )


def test_metrics_of_several_classes_are_those_of_sklearn():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=np.float64)
    probs = np.add(probabilities(5, 3), [0.2, 0.1, -0.1])
    hard = (probs >= 0.5).astype(int)
    result = MultilabelTask(n_classes=3).metrics(probs, truth)
    assert result["accuracy"] == pytest.approx(np.mean(hard == truth))
    assert result["f1_micro"] == pytest.approx(reference.f1_score(truth, hard, average="micro"))
    with_labels = [0, 1]  # the third class never occurs
    assert result["auroc"] == pytest.approx(
        np.mean([reference.roc_auc_score(truth[:, c], probs[:, c]) for c in with_labels])
    )
    assert result["auprc"] == pytest.approx(
        np.mean([reference.average_precision_score(truth[:, c], probs[:, c]) for c in with_labels])
    )
    assert not hard[:, 2].any(), "else its F1 is 0 and counts"
    assert result["f1"] == pytest.approx(
        np.mean([reference.f1_score(truth[:, c], hard[:, c]) for c in with_labels])
    )


def test_metrics_of_contacts():
    task = ContactTask(min_separation=1)
    truth = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[9, 0.9, 0.8], [0.2, 9, 0.1], [0.3, 0.1, 9]])
    result = task.metrics(task.join([scores]), task.join([task.numbers(truth)]))
    far = ~np.eye(3, dtype=bool)
    assert result == pytest.approx(
        {
            "precision_at_n": 1 / 2,
            "auroc": reference.roc_auc_score(truth[far], scores[far]),
            "auprc": reference.average_precision_score(truth[far], scores[far]),
        }
    )


@pytest.mark.parametrize("hard", [0, 1])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_gives_nan_and_no_score(label, hard):
    probs = np.tile([[0.9, 0.1]] if hard == 0 else [[0.1, 0.9]], (4, 1))
    result = BinaryTask().metrics(probs, np.full(4, label))
    assert result.pop("accuracy") == float(hard == label)
    assert all(math.isnan(value) for value in result.values()), result
    assert set(result) == {"balanced_accuracy", "f1", "mcc", "auroc", "auprc"}


def test_one_class_of_several_alone_gives_nan():
    result = MulticlassTask(n_classes=3).metrics(probabilities(4, 3), np.ones(4))
    defined = {name for name, value in result.items() if not math.isnan(value)}
    assert defined == {"accuracy"}
    several = MultilabelTask(n_classes=2).metrics(np.full((3, 2), 0.1), np.zeros((3, 2)))
    assert {name for name, value in several.items() if not math.isnan(value)} == {"accuracy"}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_contacts_everywhere_or_nowhere_give_nan(label):
    result = ContactTask().metrics(np.linspace(0, 1, 9), np.full(9, label))
    assert all(math.isnan(value) for value in result.values())
    assert len(result) == 3


@pytest.mark.parametrize(
    ("task", "predictions", "labels"),
    [
        (BinaryTask(), np.ones((2, 2)) / 2, np.full(2, np.nan)),
        (MulticlassTask(n_classes=3), np.zeros((0, 3)), np.zeros(0)),
        (MultilabelTask(n_classes=2), np.ones((2, 2)), np.full((2, 2), np.nan)),
        (ContactTask(), np.ones(4), np.full(4, np.nan)),
    ],
)
def test_no_labels_give_nan(task, predictions, labels):
    result = task.metrics(predictions, labels)
    assert all(math.isnan(value) for value in result.values())
    assert list(result) == task.metric_names


@pytest.mark.parametrize(
    ("task", "shape", "labels"),
    [
        (BinaryTask(), (2, 2), [0.0, 1.0]),
        (MultilabelTask(n_classes=2), (2, 2), [[0.0, 1.0], [1.0, 0.0]]),
        (ContactTask(), (2,), [0.0, 1.0]),
    ],
)
def test_metrics_of_predictions_that_are_not_numbers_are_not_numbers(task, shape, labels):
    result = task.metrics(np.full(shape, np.nan), np.array(labels))
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(
    "task",
    [
        BinaryTask(),
        MulticlassTask(n_classes=3),
        MulticlassTask(n_classes=3, level="residue"),
        MultilabelTask(n_classes=2),
        ContactTask(),
    ],
)
def test_metrics_have_names_and_a_direction_before_any_data(task):
    assert task.metric_names
    assert set(task.metric_names) <= task.higher_is_better


def test_q3_leaves_out_masked_residues():
    task = MulticlassTask(classes=["C", "E", "H"], level="residue")
    outputs = torch.full((2, 4, 3), -10.0)
    for row, letters in enumerate(["CEHH", "EEEE"]):
        for place, letter in enumerate(letters):
            outputs[row, place, "CEH".index(letter)] = 10.0
    # wrong only where no label is: 5 labels, 4 of them right
    labels = [["C", "E", None, None], ["E", "C"]]
    predictions, targets = through(task, outputs, labels, [4, 2])
    assert (len(predictions), len(targets)) == (6, 6)
    result = task.metrics(predictions, targets)
    assert result["q3"] == result["accuracy"] == 3 / 4
    everything = task.metrics(*through(task, outputs, ["CECC", "EC"], [4, 2]))
    assert everything["q3"] == 3 / 6
    assert "q3" not in MulticlassTask(classes="CEH").metric_names


# One class that is there or not


def test_predictions_of_one_optional_class_keep_their_shape_in_a_batch_of_one():
    task = MultilabelTask(classes=["a"])
    assert task.predictions({"prediction": torch.zeros(3)}).shape == (3, 1)
    assert task.predictions({"prediction": torch.zeros(1)}).shape == (1, 1)
    residues = MultilabelTask(classes=["a"], level="residue")
    for size in ((2, 3), (2, 1), (1, 1)):
        assert residues.predictions({"prediction": torch.zeros(size)}).shape == (*size, 1)


def test_f1_micro_of_one_optional_class_is_its_f1():
    truth = np.array([[1.0], [0], [0], [0]])
    probs = np.array([[0.9], [0.9], [0.1], [0.1]])
    result = MultilabelTask(classes=["a"]).metrics(probs, truth)
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["f1_micro"] == pytest.approx(2 / 3)


# Presentation


@pytest.mark.parametrize("task", [BinaryTask(classes="xy"), MulticlassTask(classes="xyz")])
def test_classes_come_back_as_they_were_written(task):
    labels = ["y", "x", "y", task.classes[-1]]
    one_hot = np.eye(task.n_outputs)[task.encode(labels).numpy().astype(int)]
    shown = task.present(list(one_hot))
    assert shown["prediction"] == labels
    assert isinstance(shown["probs"], torch.Tensor)
    assert shown["probs"].shape == (4, task.n_outputs)
    assert shown["probs"].dtype == torch.float64


def test_residues_come_back_as_letters_or_as_names():
    probs = [np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[1]]]
    letters = MulticlassTask(classes="CEH", level="residue").present(probs)
    assert letters["prediction"] == ["CEHH", "E"]
    assert [p.shape for p in letters["probs"]] == [(4, 3), (1, 3)]
    words = MulticlassTask(classes=["coil", "strand", "helix"], level="residue").present(probs)
    assert words["prediction"] == [["coil", "strand", "helix", "helix"], ["strand"]]


def test_several_classes_come_back_as_lists():
    task = MultilabelTask(classes=["a", "b"])
    shown = task.present([np.array([0.5, 0.6]), np.array([0.49, 0.1])])
    assert shown["prediction"] == [["a", "b"], []]
    assert shown["probs"].tolist() == [[0.5, 0.6], [0.49, 0.1]]
    residues = MultilabelTask(classes=["a", "b"], level="residue")
    shown = residues.present([np.array([[0.9, 0.9], [0.1, 0.6]])])
    assert shown["prediction"] == [[["a", "b"], ["b"]]]


@pytest.mark.parametrize("level", ["sequence", "residue"])
@pytest.mark.parametrize("make", [BinaryTask, MulticlassTask, MultilabelTask])
def test_the_columns_of_probabilities_have_names(make, level):
    predictions = [np.full((3, 2)[level == "sequence" :], 0.5)]
    assert make(classes=["no", "yes"], level=level).present(predictions)["classes"] == ["no", "yes"]
    assert make(n_classes=2, level=level).present(predictions)["classes"] == ["0", "1"]


def test_no_samples_are_presented_as_none():
    for task in (BinaryTask(classes="ab"), MultilabelTask(classes="ab")):
        shown = task.present([])
        assert shown["prediction"] == []
        assert shown["probs"].shape == (0, 2)
    assert MulticlassTask(classes="abc", level="residue").present([])["prediction"] == []


def test_before_training_classes_are_numbers():
    assert MulticlassTask(n_classes=3).present([np.array([0.1, 0.2, 0.7])])["prediction"] == ["2"]


def test_contacts_come_back_as_maps():
    task = ContactTask()
    maps = task.split(task.predictions({"prediction": torch.zeros(2, 3, 3)}), [3, 2])
    shown = task.present(maps)["prediction"]
    assert [m.shape for m in shown] == [(3, 3), (2, 2)]
    assert shown[0].tolist() == [[0.5] * 3] * 3


# State


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (BinaryTask(class_weight="balanced"), ["x", "y", "y"]),
        (
            MulticlassTask(n_classes=4, class_weight=[1, 2, 3, 4], label_smoothing=0.1),
            ["b", "a", "c"],
        ),
        (MulticlassTask(classes="CEH", level="residue", class_weight="balanced"), ["CEH", "CC"]),
        (MultilabelTask(n_classes=2, class_weight="balanced"), ["a;b", "a", ""]),
        (ContactTask(min_separation=3), [np.eye(5)]),
    ],
)
def test_config_and_state_survive_json(task, labels):
    task.fit_targets(labels)
    config, state = json.loads(json.dumps([dict(task.config_dict), task.state_dict()]))
    again = type(task)(**config)
    assert not again.fitted
    again.load_state_dict(state)
    assert dict(again.config_dict) == dict(task.config_dict)
    assert again.state_dict() == task.state_dict()
    assert again.fitted
    lengths = None if task.level == "sequence" else [len(label) for label in labels]
    targets = task.encode(labels, lengths)
    encoded = again.encode(labels, lengths)
    assert torch.equal(torch.isnan(encoded), torch.isnan(targets))
    assert torch.equal(encoded.nan_to_num(), targets.nan_to_num())
    shape = (
        targets.shape
        if targets.ndim > 1 and task.level != "residue"
        else (*targets.shape, task.n_outputs)
    )
    outputs = {"prediction": raw(*shape)}
    assert again.loss(outputs, encoded).total == task.loss(outputs, targets).total != 0


def test_the_state_is_a_copy():
    task = BinaryTask(classes=["a", "b"])
    state = task.state_dict()
    task.fit_targets(["a"])
    assert (state["fitted"], task.fitted) == (False, True)


# Wrong arguments


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MulticlassTask(), r"The task 'multiclass' needs its classes: pass task_config="),
        (lambda: MultilabelTask(), r"The task 'multilabel' needs its classes"),
        (lambda: MulticlassTask(classes="abb"), r"classes names one twice: \['a', 'b', 'b'\]\."),
        (lambda: MulticlassTask(classes=[1, 1.0]), r"classes names one twice: \['1', '1'\]\."),
        (lambda: MulticlassTask(n_classes=1), r"n_classes=1 does not fit: expected at least 2\."),
        (lambda: MultilabelTask(n_classes=0), r"n_classes=0 does not fit: expected at least 1\."),
        (lambda: MulticlassTask(n_classes=-2), r"n_classes=-2 does not fit"),
        (lambda: MulticlassTask(classes="abc", n_classes=4), r"n_classes=4 does .* expected 3\."),
        (lambda: BinaryTask(n_classes=3), r"A binary task has two classes; use 'multiclass'"),
        (
            lambda: BinaryTask(classes="abc"),
            r"two classes, found 3 \('a', 'b', 'c'\)\. Use 'multiclass'",
        ),
        (lambda: BinaryTask(level="residues"), r"Unknown level 'residues'.*Did you mean 'residue'"),
        (
            lambda: BinaryTask(class_weight="balance"),
            r"class_weight must be 'balanced' or numbers, got 'balance'\.",
        ),
        (
            lambda: BinaryTask(class_weight=[1, 2, 3]),
            r"class_weight must hold 2 finite numbers above 0, one per class, got "
            r"\[1\.0, 2\.0, 3\.",
        ),
        (lambda: BinaryTask(class_weight=[1, 0]), r"must hold 2 finite numbers above 0"),
        (lambda: BinaryTask(class_weight=[1, math.nan]), r"must hold 2 finite numbers above 0"),
        (
            lambda: BinaryTask(label_smoothing=1.0),
            r"label_smoothing must be in \[0, 1\), got 1\.0\.",
        ),
        (lambda: MulticlassTask(n_classes=3, label_smoothing=-0.1), r"got -0\.1\."),
        (lambda: MulticlassTask(n_classes=3, label_smoothing=math.nan), r"got nan\."),
        (
            lambda: ContactTask(level="residue"),
            r"'contact' is for pairs of residues, got level='residue'\.",
        ),
        (lambda: ContactTask(min_separation=-1), r"min_separation must be 0 or more, got -1\."),
    ],
)
def test_wrong_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_one_class_alone_is_refused_with_what_was_given():
    with pytest.raises(ConfigError, match=r"at least 2"):
        MulticlassTask(classes=["a"])


@pytest.mark.parametrize(
    ("make", "classes", "text"),
    [
        (
            MulticlassTask,
            "a",
            r"'multiclass' needs at least 2 classes, found 'a'\. Check the labels",
        ),
        (MulticlassTask, "", r"'multiclass' needs at least 2 classes, found none\."),
        (MultilabelTask, "", r"'multilabel' needs at least 1 class, found none\."),
        (BinaryTask, "a", r"A binary task has two classes, found 'a'\. Check the labels"),
        (BinaryTask, "", r"A binary task has two classes, found none\."),
    ],
)
def test_too_few_classes_are_named(make, classes, text):
    with pytest.raises(ConfigError, match=text):
        make(classes=classes)


def test_an_infinite_weight_is_refused():
    with pytest.raises(ConfigError, match=r"class_weight must hold"):
        BinaryTask(class_weight=[1, math.inf])


def test_a_contact_map_has_to_be_square():
    with pytest.raises(DataError, match=r"has to be square, got the shape \(2, 3\)\."):
        ContactTask().numbers(np.zeros((2, 3)))


def test_distances_are_no_contact_map():
    with pytest.raises(DataError, match="0"):
        ContactTask(min_separation=0).numbers(np.array([[0.0, 7.5], [7.5, 0.0]]))


@pytest.mark.parametrize("value", [-1.0, 1.5, math.inf])
def test_contacts_are_shares_or_missing(value):
    task = ContactTask(min_separation=1)
    with pytest.raises(DataError, match=rf"from 0 .* to 1 .*; found {value:g}\. .*distances < 8"):
        task.numbers([[0, value], [value, 0]])
    assert task.numbers([[True, 0.5], [math.nan, False]])[0, 1] == 0.5


# Batches of residues and pairs


def test_labels_of_residues_are_padded_and_cropped():
    task = MulticlassTask(classes="CEH", level="residue")
    encoded = task.encode(["CEHC", "EE", None, [None, "H", "C"]], [3, 2, 2, 3])
    nan = math.nan
    expected = [[0, 1, 2], [1, 1, nan], [nan, nan, nan], [nan, 2, 0]]
    assert encoded.dtype == torch.float64
    assert torch.equal(torch.nan_to_num(encoded, -1), torch.nan_to_num(torch.tensor(expected), -1))


def test_labels_of_several_classes_a_residue_are_padded_and_cropped():
    task = MultilabelTask(classes="ab", level="residue")
    encoded = task.encode([[["a"], ["b"], []], [None, "a;b"], None], [2, 2, 1])
    assert encoded.shape == (3, 2, 2)
    assert encoded[0].tolist() == [[1, 0], [0, 1]]
    assert encoded[1, 1].tolist() == [1, 1]
    assert torch.isnan(encoded[1, 0]).all()
    assert torch.isnan(encoded[2]).all()


def test_maps_are_padded_and_cropped():
    task = ContactTask(min_separation=0)
    big, small = np.arange(16.0).reshape(4, 4) % 2, np.ones((2, 2))
    encoded = task.encode([big, small, None], [3, 2, 1])
    assert encoded.shape == (3, 3, 3)
    assert encoded[0].tolist() == big[:3, :3].tolist()
    assert encoded[1, :2, :2].tolist() == small.tolist()
    assert int(torch.isnan(encoded[1]).sum()) == 5
    assert torch.isnan(encoded[2]).all()


@pytest.mark.parametrize(
    ("task", "shape", "expected"),
    [
        (MulticlassTask(classes="abc"), (3, 3), (3, 3)),
        (MulticlassTask(classes="abc", level="residue"), (3, 4, 3), (7, 3)),
        (MultilabelTask(classes="ab", level="residue"), (3, 4, 2), (7, 2)),
        (ContactTask(), (3, 4, 4), (16 + 1 + 4,)),
    ],
)
def test_splitting_and_joining_leaves_out_the_padding(task, shape, expected):
    lengths = [4, 1, 2]
    values = raw(*shape)
    dims = {"sequence": 0, "residue": 1, "pair": 2}[task.level]
    padded = values.clone()
    for row, n in enumerate(lengths):
        for dim in range(dims):
            index = [row, slice(None), slice(None)][: 1 + dims]
            index[1 + dim] = slice(n, None)
            padded[tuple(index)] = math.nan
    parts = task.split(padded, lengths)
    assert [len(part) for part in parts] == ([3, 3, 3] if dims == 0 else lengths)
    joined = task.join(parts)
    assert joined.shape == expected
    assert not np.isnan(joined).any()
    first = values[0].numpy().reshape(-1, *shape[1 + dims :]) if dims else values[:1].numpy()
    assert joined[: len(first)].tolist() == first.tolist()


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (BinaryTask(), (0,)),
        (MultilabelTask(n_classes=3), (0, 3)),
        (MulticlassTask(n_classes=3, level="residue"), (0,)),
    ],
)
def test_joining_nothing_gives_no_labels(task, shape):
    assert task.join([]).shape == shape


def test_mcc_is_undefined_where_all_predictions_are_alike():
    task = MulticlassTask(classes="ab")
    metrics = task.metrics(np.array([[0.9, 0.1]] * 4), np.array([0.0, 1, 0, 1]))
    assert np.isnan(metrics["mcc"])
    assert metrics["accuracy"] == 0.5


def test_q3_is_for_three_classes():
    probs = np.eye(8)[[0, 1, 2, 3]]
    names = {n: set(MulticlassTask(n_classes=n, level="residue").metrics(probs[:, :n],
             np.array([0.0, 1, 2, 2]))) for n in (3, 8)}  # fmt: skip
    assert "q3" in names[3]
    assert "q3" not in names[8]


def test_rows_of_zeros_and_ones_are_labels_too() -> None:
    """As batches of tensors bring them; the columns are the classes in order."""
    rows = [np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]), None]
    task = MultilabelTask(n_classes=3)
    task.fit_targets(rows)
    assert task.classes == ["0", "1", "2"]
    assert task.numbers(rows[1]).tolist() == [1.0, 0.0, 1.0]
    named = MultilabelTask(classes=["a", "b", "c"])
    named.fit_targets(rows)
    assert named.numbers(rows[0]).tolist() == [0.0, 0.0, 1.0]
    for wrong in (np.array([1.0, 0.0]), np.array([0.5, 0.0, 1.0])):
        with pytest.raises(DataError, match="a 0 or 1 for each of the 3 classes"):
            named.numbers(wrong)


def test_a_batch_of_tensors_trains_a_multilabel_head() -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 6, 2)
    label = (values.mean(1) > 0).float()
    batch = {"timeseries": values, "mask": torch.ones(8, 6, 2, dtype=torch.bool), "label": label}
    model = MolfunStructureModel(
        "timeseries",
        config={"name": "linear", "d_input": 2, "d_model": 8},
        head="multilabel",
        task_config={"n_classes": 2},
        device="cpu",
    )
    model.fit([batch], strategy=FullFinetune(lr=0.05, lr_head=0.05), epochs=80)
    assert model.evaluate([batch])["accuracy"] > 0.9
