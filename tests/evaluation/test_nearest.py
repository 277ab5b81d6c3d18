"""The nearest training sequence, and how much of it is the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from molfun.data.clusters import identity
from molfun.evaluation.nearest import NEAR, nearest

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def mutated(rng: random.Random, text: str, n: int) -> str:
    places = set(rng.sample(range(len(text)), n))
    return "".join(
        rng.choice(LETTERS.replace(c, "")) if i in places else c for i, c in enumerate(text)
    )


@pytest.mark.parametrize("length", [30, 120])
def test_mutants_find_their_parent(length: int) -> None:
    rng = random.Random(0)
    parents = ["".join(rng.choices(LETTERS, k=length)) for _ in range(50)]
    changed = [mutated(rng, parent, 1 + i % (length // 5)) for i, parent in enumerate(parents)]
    found = nearest([[text] for text in changed], [[text] for text in parents])
    assert found.places.tolist() == list(range(50))
    for text, parent, value in zip(changed, parents, found.identities, strict=True):
        same = sum(a == b for a, b in zip(text, parent, strict=True)) / length
        # the alignment may leave out mutated ends, and gain nothing else
        assert value == identity(text, parent)
        assert same - 0.1 < value <= same + 0.05


def test_counts_of_equal_and_of_nearly_equal_samples() -> None:
    rng = random.Random(1)
    training = ["".join(rng.choices(LETTERS, k=100)) for _ in range(4)]
    samples = [
        [training[2].lower()],
        [mutated(rng, training[1], 3)],
        [mutated(rng, training[0], 30)],
        ["W" * 50],
        [],
    ]
    found = nearest(samples, [[text] for text in training])
    assert found.places.tolist() == [2, 1, 0, -1, -1]
    assert (found.n_same, found.n_near) == (1, 1)
    assert NEAR <= found.identities[1] < 1
    assert found.identities[3:].tolist() == [0, 0]
    assert nearest([["MKV"]], []).places.tolist() == [-1]


def test_of_a_complex_the_nearest_chain_counts() -> None:
    rng = random.Random(2)
    one, other, far = ("".join(rng.choices(LETTERS, k=80)) for _ in range(3))
    found = nearest([(far, other)], [(one,), (other, one)])
    assert found.places.tolist() == [1]
    assert np.array_equal(found.identities, [1.0])
