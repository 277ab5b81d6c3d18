"""What a trial draws: ranges of numbers, and choices that may bring settings of their own."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from molfun.config import read_yaml
from molfun.errors import ConfigError
from molfun.text import nearest

_OF_A_RANGE = ("low", "high", "step", "log")


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Parameters
    ----------
    low, high
        Ends; whole numbers draw whole numbers.
    step
        Distance of the numbers that may be drawn; None for all.
    log
        Whether equal ratios are equally likely, as for learning rates.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def values(self) -> list[Any]:
        """Values that stand for all of them: the ends."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """Values of which a trial draws one.

    Parameters
    ----------
    options
        The values.
    inner
        What is drawn in addition, for each value; an empty space for those that bring nothing.
    """

    options: tuple[Any, ...]
    inner: tuple[Space, ...]

    @property
    def values(self) -> list[Any]:
        """All of them."""
        return list(self.options)

    @property
    def labels(self) -> list[Any]:
        """The values as optuna keeps them: what is no plain value as JSON."""
        return [label_of(value) for value in self.options]


Node: TypeAlias = Range | Choices


def label_of(value: Any) -> Any:
    """Return a plain value as it is, and any other as JSON.

    Examples
    --------
    >>> label_of(8), label_of(["q_proj", "v_proj"])
    (8, '["q_proj", "v_proj"]')
    """
    return value if isinstance(value, int | float | str | None) else json.dumps(value)


@dataclass(frozen=True)
class Space:
    """Settings that trials draw, by name.

    Examples
    --------
    >>> space = Space.of({
    ...     "lr": {"low": "1e-5", "high": 1e-3, "log": True},
    ...     "strategy": {"head_only": None, "lora": {"rank": {"low": 4, "high": 16, "step": 4}}},
    ... })
    >>> space.draw(lambda name, node: node.values[-1])
    {'lr': 0.001, 'strategy': 'lora', 'rank': 16}
    >>> space.draw(lambda name, node: node.values[0])
    {'lr': 1e-05, 'strategy': 'head_only'}
    """

    nodes: Mapping[str, Node]

    @classmethod
    def of(cls, content: Any, *, source: str = "space", real: Collection[str] = ()) -> Space:
        """Make a space of plain values, as a YAML file holds them.

        Parameters
        ----------
        content
            Maps each setting to a range (``{"low": 1e-5, "high": 1e-3, "log": True}``, ``{"low":
            4, "high": 32, "step": 4}``), a list of choices, or a mapping of choices to the
            settings that are drawn with each (None for none).
        source
            Origin of the content, for messages.
        real
            Settings whose ranges are of real numbers, also where both ends are written as whole
            ones.

        Raises
        ------
        ConfigError
            Naming what is wrong, and where.
        """
        if not isinstance(content, Mapping) or not content:
            raise ConfigError(
                f"{source} draws nothing. Map settings to ranges or choices, for example "
                f"lr: {{low: 1.0e-5, high: 1.0e-3, log: true}}."
            )
        space = cls({str(n): _node(n, given, source, real) for n, given in content.items()})
        space._refuse_twice(source, [])
        return space

    @classmethod
    def read(cls, path: str | Path, *, real: Collection[str] = ()) -> Space:
        """Read a space from a YAML file.

        Raises
        ------
        ConfigError
            If the file cannot be read, or something in it is wrong.
        """
        return cls.of(read_yaml(path), source=str(path), real=real)

    def draw(self, pick: Callable[[str, Node], Any], _within: str = "") -> dict[str, Any]:
        """Return settings, each chosen by `pick`.

        Parameters
        ----------
        pick
            Function of the name that the draw has in a study (``"strategy=lora: rank"`` within a
            choice) and of its range or choices; returns the value.
        """
        drawn: dict[str, Any] = {}
        for name, node in self.nodes.items():
            value = drawn[name] = pick(f"{_within}{name}", node)
            if isinstance(node, Choices):
                inner = node.inner[node.options.index(value)]
                drawn |= inner.draw(pick, f"{_within}{name}={label_of(value)}: ")
        return drawn

    def plain(self) -> dict[str, Any]:
        """Return plain values of which `of` makes the same space."""
        return {name: _plain(node) for name, node in self.nodes.items()}

    def names(self) -> list[str]:
        """Return the settings that any trial may draw, each once."""
        found = dict.fromkeys(self.nodes)
        for node in self.nodes.values():
            for _, inner in _inner_of(node):
                found |= dict.fromkeys(inner.names())
        return list(found)

    def draws(self) -> dict[str, Node]:
        """Return all ranges and choices by the names that they have in a study."""
        found: dict[str, Node] = {}
        for name, node in self.nodes.items():
            found[name] = node
            for value, inner in _inner_of(node):
                own = inner.draws()
                found |= {f"{name}={label_of(value)}: {key}": own[key] for key in own}
        return found

    def cases(self) -> Iterator[dict[str, Any]]:
        """Yield settings such that every choice, and both ends of every range, occur.

        Examples
        --------
        >>> list(Space.of({"rank": [4, 8], "lr": {"low": 0.1, "high": 0.2}}).cases())
        [{'rank': 4, 'lr': 0.1}, {'rank': 8, 'lr': 0.1}, {'rank': 4, 'lr': 0.2}]
        """
        first = self.draw(lambda _, node: node.values[0])
        yield first
        for name, node in self.nodes.items():
            for place, value in enumerate(node.values):
                inner = node.inner[place] if isinstance(node, Choices) else NOTHING
                # the first value is that of the first case, apart from what is drawn with it
                for own in list(inner.cases())[1 if place == 0 else 0 :]:
                    yield {**self._without(first, name), name: value, **own}

    def _without(self, drawn: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return settings without those that a choice brings."""
        brought = {own for _, inner in _inner_of(self.nodes[name]) for own in inner.names()}
        return {key: value for key, value in drawn.items() if key not in brought}

    def _refuse_twice(self, source: str, outer: list[str]) -> None:
        for node in self.nodes.values():
            for _, inner in _inner_of(node):
                twice = [name for name in inner.names() if name in (*self.nodes, *outer)]
                if twice:
                    raise ConfigError(
                        f"{source}: {twice[0]} is drawn within a choice and outside of it. Keep "
                        f"one of the two."
                    )
                inner._refuse_twice(source, [*outer, *self.nodes])


def _inner_of(node: Node) -> list[tuple[Any, Space]]:
    """Return the values that bring settings of their own, with these."""
    if not isinstance(node, Choices):
        return []
    pairs = zip(node.options, node.inner, strict=True)
    return [(value, inner) for value, inner in pairs if inner.nodes]


NOTHING = Space({})
"""What is drawn with a choice that brings no settings."""


def _plain(node: Node) -> Any:
    if isinstance(node, Range):
        given = {"low": node.low, "high": node.high, "step": node.step, "log": node.log}
        return {key: value for key, value in given.items() if value not in (None, False)}
    if not any(inner.nodes for inner in node.inner):
        return list(node.options)
    pairs = zip(node.options, node.inner, strict=True)
    return {option: inner.plain() or None for option, inner in pairs}


def _node(name: str, given: Any, source: str, real: Collection[str]) -> Node:
    where = f"{source}: {name}"
    if isinstance(given, Mapping) and {"low", "high"} & set(map(str, given)):
        return _range(
            where, dict(zip(map(str, given), given.values(), strict=True)), real=name in real
        )
    if isinstance(given, Mapping) and given and all(isinstance(one, str) for one in given):
        inner = [_inner(f"{where}={option}", own, real) for option, own in given.items()]
        return Choices(tuple(given), tuple(inner))
    if isinstance(given, list) and given:
        return _listed(where, given)
    raise ConfigError(
        f"{where} must be a range ({{low: 4, high: 32, step: 4}}), a list of choices, or choices "
        f"with settings of their own, got {given!r}."
    )


def _listed(where: str, given: list[Any]) -> Choices:
    labels = [json.dumps(label_of(option)) for option in given]
    twice = next((one for one in labels if labels.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where} names the choice {twice} twice. Keep one.")
    return Choices(tuple(given), (NOTHING,) * len(given))


def _inner(where: str, given: Any, real: Collection[str]) -> Space:
    return NOTHING if given is None or given == {} else Space.of(given, source=where, real=real)


def _range(where: str, given: Mapping[str, Any], *, real: bool) -> Range:
    _check_keys(where, given)
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log must be true or false, got {log!r}.")
    numbers = {key: _number(where, key, given[key]) for key in ("low", "high")}
    step = given.get("step")
    numbers["step"] = 1 if step is None else _number(where, "step", step)
    whole = not real and all(isinstance(one, int) for one in numbers.values())
    kind: type = int if whole else float
    low, high = kind(numbers["low"]), kind(numbers["high"])
    made = Range(low=low, high=high, step=None if step is None else kind(numbers["step"]), log=log)
    _check_range(where, made)
    return made


def _check_keys(where: str, given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in _OF_A_RANGE:
            known = ", ".join(_OF_A_RANGE)
            raise ConfigError(
                f"{where}: a range has {known}, got {key!r}.{nearest(key, _OF_A_RANGE)}"
            )
    missing = [key for key in ("low", "high") if key not in given]
    if missing:
        raise ConfigError(f"{where}: the range has no {missing[0]}. Give low and high.")


def _number(where: str, key: str, given: Any) -> float:
    """Return a number; YAML 1.1 reads ``1e-5``, which lacks a point, as text."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            given = float(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ConfigError(f"{where}: {key} must be a number, got {given!r}.")
    return given


def _check_range(where: str, made: Range) -> None:
    low, high, step = made.low, made.high, made.step
    if low > high:
        raise ConfigError(f"{where}: low ({low}) is above high ({high}). Exchange them.")
    if made.log and low <= 0:
        raise ConfigError(f"{where}: a range with log begins above 0, got low: {low}.")
    if made.log and step is not None:
        raise ConfigError(f"{where}: a range has log or a step, not both. Leave one out.")
    if step is None:
        return
    if step <= 0:
        raise ConfigError(f"{where}: step must be above 0, got {step}.")
    # in decimals, as the user wrote them: 0.3 / 0.1 is no whole number in binary
    rest = (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step))
    if rest:
        last = type(low)(Decimal(str(high)) - rest)
        raise ConfigError(
            f"{where}: steps of {step} from {low} do not meet high ({high}). Take high: {last}."
        )
