"""Identities estimated from a sketch, against alignments of the sequences themselves."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from molfun.errors import CheckpointError
from molfun.evaluation import sketch as sketches
from molfun.evaluation.nearest import nearest
from molfun.evaluation.sketch import KEPT, Sketch

KEY = bytes(range(16))
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def mutated(rng: random.Random, text: str, n: int) -> str:
    places = set(rng.sample(range(len(text)), n))
    return "".join(
        rng.choice(LETTERS.replace(c, "")) if i in places else c for i, c in enumerate(text)
    )


def sketch_of(texts: list[str]) -> Sketch:
    return Sketch.of([f"p{i}" for i in range(len(texts))], [[text] for text in texts], key=KEY)


def draw(rng: random.Random, n: int, length: int) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=length)) for _ in range(n)]


# half of the words of the longer ones are kept, all of those of the shorter
@pytest.mark.parametrize("length", [60, 130])
def test_estimates_follow_the_identity_of_families(length: int) -> None:
    rng = random.Random(length)
    parents = draw(rng, 40, length)
    changed = [mutated(rng, p, i * length // 100) for i, p in enumerate(parents)]
    found = sketch_of(parents).nearest([[text] for text in changed])
    true = nearest([[text] for text in changed], [[text] for text in parents])
    assert found.places.tolist() == true.places.tolist() == list(range(40))
    assert spearmanr(found.identities, true.identities).statistic > 0.95
    errors = np.abs(found.identities - true.identities)
    assert errors.mean() < 0.04
    assert errors.max() < 0.15
    assert found.same.tolist() == true.same.tolist()


def test_the_bounds() -> None:
    rng = random.Random(1)
    training = draw(rng, 300, 120)
    sketch = sketch_of(training)
    found = sketch.nearest([[training[7].lower()], [training[5][20:90]], [], ["MK"]])
    assert found.same.tolist() == [True, False, False, False]
    assert found.places.tolist() == [7, 5, -1, -1]
    # a part is contained, as in the identity per residue of the shorter sequence
    assert found.identities[0] == 1
    assert found.identities[1] > 0.95
    unrelated = sketch.nearest([[text] for text in draw(rng, 100, 120)])
    assert unrelated.identities.max() == 0
    assert not unrelated.same.any()
    assert sketch_of([]).nearest([["MKTAYIAKQR"]]).places.tolist() == [-1]


def test_of_a_complex_the_nearest_chain_counts() -> None:
    one, other, far = draw(random.Random(2), 3, 80)
    found = Sketch.of(["a", "b"], [(one,), (other, one)], key=KEY).nearest([(far, other)])
    assert (found.places.tolist(), found.identities.tolist()) == ([1], [1.0])


def test_estimates_on_gb1(real_data: Path) -> None:
    path = real_data / "gb1" / "three_vs_rest_train_valid.csv"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with path.open() as file:
        rows = [row["sequence"] for row in csv.DictReader(file)]
    training, new = rows[::20], rows[7::60]
    found = sketch_of(training).nearest([[text] for text in new])
    true = nearest([[text] for text in new], [[text] for text in training])
    # three of the four sites are neighbours, so that few words tell one change from three
    assert np.abs(found.identities - true.identities).max() < 0.04
    assert spearmanr(found.identities, true.identities).statistic > 0.5


def test_a_sketch_survives_a_file_and_grows() -> None:
    rng = random.Random(3)
    first, second = draw(rng, 3, 90), draw(rng, 3, 90)
    both = sketch_of(first).joined(sketch_of([first[1], *second]))
    again = Sketch.from_arrays(both.to_arrays())
    found = again.nearest([[first[1]], [second[2]], [mutated(rng, second[0], 3)]])
    assert found.places.tolist() == [1, 6, 4]
    assert again.n_rows == 7
    assert again.knows(["p0", "p4"]).tolist() == [True, False]
    damaged = {**both.to_arrays(), "kept": both.kept[:2].astype(np.uint8)}
    with pytest.raises(CheckpointError, match="its sizes disagree"):
        Sketch.from_arrays(damaged)


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "MOST", 5)
    rng = random.Random(4)
    training = draw(rng, 20, 500)
    sketch = sketch_of(training)
    assert (sketch.n_left_out, len(sketch.words)) == (15, 5 * KEPT)
    n_bytes = sum(array.nbytes for array in sketch.to_arrays().values())
    assert n_bytes <= 16 + 20 * 20 + 5 * (4 * KEPT + 9)
    # those without words are still known as a whole
    assert sketch.nearest([[text] for text in training]).same.all()
    assert sketch.joined(sketch_of(draw(rng, 9, 50))).n_left_out == 24
