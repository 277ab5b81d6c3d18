"""Names for parts."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from molfun import registry
from molfun.errors import ConfigError, ContractError
from molfun.objectives import MaskedLMObjective
from molfun.registry import BACKBONES, HEADS, STRATEGIES, TASKS, Registry
from molfun.tasks import RegressionTask
from molfun.training import HeadOnlyFinetune


class Apple:
    """Something to register."""


@pytest.fixture
def fruits() -> Registry:
    return Registry("fruits")


def test_a_class_is_found_under_its_name(fruits):
    assert fruits.register("apple")(Apple) is Apple
    assert fruits["apple"] is Apple
    assert list(fruits) == ["apple"]
    assert "apple" in fruits
    assert "pear" not in fruits


def test_a_path_is_imported_when_it_is_asked_for(fruits):
    fruits.register("ordered", "collections:OrderedDict")
    fruits.register("broken", "no_such_package:Thing")
    from collections import OrderedDict

    assert fruits["ordered"] is OrderedDict
    assert "broken" in fruits
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        _ = fruits["broken"]


def test_an_unknown_name_gives_the_nearest(fruits):
    fruits.register("apple")(Apple)
    fruits.register("pear")(Apple)
    with pytest.raises(
        ConfigError, match=r"Unknown fruit 'aple'; known: apple, pear\. Did you mean 'apple'\?"
    ):
        _ = fruits["aple"]


def test_other_packages_add_theirs_once_and_replace_none(fruits, monkeypatch):
    asked = []

    def installed() -> EntryPoints:
        asked.append(True)
        return EntryPoints(
            EntryPoint(name, f"collections:{cls}", "molfun.fruits")
            for name, cls in (("pear", "OrderedDict"), ("apple", "Counter"))
        )

    monkeypatch.setattr(registry, "_installed", installed)
    fruits.register("apple")(Apple)
    assert fruits["apple"] is Apple
    assert fruits["pear"].__name__ == "OrderedDict"
    assert asked == [True]


@pytest.mark.parametrize("parts", [BACKBONES, HEADS, TASKS, STRATEGIES], ids=lambda r: r.kind)
def test_everything_registered_can_be_imported(parts):
    assert list(parts)
    for name in parts:
        assert getattr(parts[name], "name", name) == name


@pytest.mark.parametrize("name", list(BACKBONES))
def test_what_is_said_of_a_backbone_before_it_is_imported_is_true(name):
    for attribute, value in BACKBONES._about[name].items():
        assert getattr(BACKBONES[name], attribute) == value


def test_a_broken_package_stops_nobody_else(fruits, monkeypatch, caplog):
    def installed() -> EntryPoints:
        entries = (("apple", "collections:Counter"), ("gone", "no_such_package:Gone"),
                   ("pear", "collections:OrderedDict"))  # fmt: skip
        return EntryPoints(EntryPoint(name, at, "molfun.fruits") for name, at in entries)

    monkeypatch.setattr(registry, "_installed", installed)
    fruits.register("apple")(Apple)
    assert [cls.__name__ for cls in fruits.classes()] == ["Apple", "OrderedDict"]
    assert [cls.__name__ for cls in fruits.classes()] == ["Apple", "OrderedDict"]
    text = (
        "The fruit 'gone' of the installed package (unknown) cannot be imported from "
        "'no_such_package:Gone' (ModuleNotFoundError: No module named 'no_such_package'). Repair "
        "or uninstall that package."
    )
    assert [record.getMessage() for record in caplog.records] == [
        "The fruit 'apple' of the installed package (unknown) is left out: the name is taken.",
        f"{text} It is left out.",
    ]
    with pytest.raises(ConfigError) as error:
        _ = fruits["gone"]
    assert str(error.value) == text


def test_a_class_has_the_name_it_is_registered_under(fruits):
    class Other:
        name = "other"

    fruits.register("other")(Other)
    with pytest.raises(ContractError, match=r"The fruit 'plum' is the class Other, whose name is"):
        fruits.register("plum")(Other)


@pytest.mark.parametrize("base", [RegressionTask, MaskedLMObjective, HeadOnlyFinetune])
def test_a_part_without_a_name_is_refused_when_its_class_is_made(base, monkeypatch):
    monkeypatch.delattr(base, "name")
    with pytest.raises(
        ContractError, match=r"Mine must set the class attribute name: Registered name\."
    ):
        type("Mine", (base,), {})
