"""What trials draw: ranges, choices, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from molfun.errors import ConfigError
from molfun.tuning import Space
from molfun.tuning.space import Choices, Range

TREE = {
    "lr": {"low": "1e-5", "high": 1e-3, "log": True},
    "strategy": {"head_only": None, "lora": {"rank": {"low": 4, "high": 8, "step": 2}}},
    "targets": [["q_proj"], ["q_proj", "v_proj"]],
}


def test_numbers_are_whole_or_real_as_they_are_written() -> None:
    made = Space.of({"a": {"low": 1, "high": 4}, "b": {"low": 0, "high": 1}}, real=["b"]).nodes
    assert made == {"a": Range(low=1, high=4), "b": Range(low=0.0, high=1.0)}
    assert [type(node.low) for node in made.values() if isinstance(node, Range)] == [int, float]


def test_a_space_survives_json() -> None:
    space = Space.of(TREE)
    assert Space.of(space.plain()) == space
    assert space.names() == ["lr", "strategy", "targets", "rank"]
    assert list(space.draws()) == ["lr", "strategy", "strategy=lora: rank", "targets"]


def test_settings_of_a_choice_are_drawn_with_it_alone() -> None:
    space = Space.of(TREE)
    assert "rank" not in space.draw(lambda _, node: node.values[0])
    drawn = space.draw(lambda _, node: node.values[-1])
    assert drawn == {
        "lr": 1e-3, "strategy": "lora", "rank": 8, "targets": ["q_proj", "v_proj"],
    }  # fmt: skip


def test_cases_have_every_value_once() -> None:
    cases = list(Space.of(TREE).cases())
    for name, values in {
        "lr": {1e-5, 1e-3}, "strategy": {"head_only", "lora"}, "rank": {4, 8},
    }.items():  # fmt: skip
        assert {case[name] for case in cases if name in case} == values
    assert len(cases) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, r"^space draws nothing. Map settings to ranges or choices"),
        (None, r"^space draws nothing"),
        ({"lr": {"low": 1, "high": 0.1}}, r"^space: lr: low \(1.0\) is above high \(0.1\). Exch"),
        ({"lr": {"low": 1}}, r"^space: lr: the range has no high. Give low and high."),
        ({"lr": {"low": 1, "hihg": 2}}, r"low, high, step, log, got 'hihg'. Did you mean 'high'\?"),
        ({"lr": {"low": "x", "high": 2}}, r"^space: lr: low must be a number, got 'x'."),
        ({"lr": {"low": 0, "high": 2, "log": True}}, r"log begins above 0, got low: 0."),
        ({"lr": {"low": 0, "high": 2, "log": "yes"}}, r"log must be true or false, got 'yes'."),
        ({"lr": {"low": 1, "high": 2, "log": True, "step": 1}}, r"has log or a step, not both"),
        ({"r": {"low": 4, "high": 9, "step": 2}}, r"do not meet high \(9\). Take high: 8."),
        ({"r": {"low": 4, "high": 9, "step": 0}}, r"step must be above 0, got 0."),
        ({"r": []}, r"^space: r must be a range .*, a list of choices, or choices .*, got \[\]."),
        ({"r": 3}, r"^space: r must be a range .* got 3."),
        ({"r": {4: None, 8: {"x": [1]}}}, r"^space: r must be a range"),
        ({"r": [1, 2, 1]}, r"^space: r names the choice 1 twice. Keep one."),
        ({"s": {"a": {"r": {"low": 2, "high": 1}}}}, r"^space: s=a: r: low \(2\) is above high"),
        ({"r": [1], "s": {"a": {"r": [2]}}}, r"^space: r is drawn within a choice and outside"),
    ],
)
def test_what_is_wrong_is_named(content: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        Space.of(content)
    assert "\n" not in str(raised.value)


def test_steps_are_counted_in_decimals(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("x: {low: 0.1, high: 0.7, step: 0.3}\ny: [1, two]\n")
    made = Space.read(path)
    assert made.nodes["x"] == Range(low=0.1, high=0.7, step=0.3)
    assert isinstance(made.nodes["y"], Choices)
    with pytest.raises(ConfigError, match=r"Cannot read .*none.yaml: No such file"):
        Space.read(tmp_path / "none.yaml")
