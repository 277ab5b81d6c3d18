"""Settings from YAML, command line and Python: typed, and strict about names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from molfun._formats import decoded
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.errors import ConfigError, MolfunError
from molfun.text import listing, nearest

T = TypeVar("T", bound="Settings")

MAX_BYTES = Limit("YAML_BYTES", 2**18)
"""Largest file of settings; a long one has ten kilobytes."""
MAX_DEPTH = Limit("YAML_DEPTH", 50, "levels")
"""Sections inside sections; the deepest file of settings has seven."""
MAX_VALUES = Limit("YAML_VALUES", 100_000, "values")
"""Values of a file of settings, aliases expanded: nine lines can stand for a billion."""
_LONGEST_NUMBER = 1000
"""Characters of the longest whole number."""


class Settings(BaseModel):
    """Base of typed settings: unknown names are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def build(
        cls: type[T],
        values: Mapping[str, Any],
        *,
        source: str = "settings",
        names: Mapping[str, str] | None = None,
    ) -> T:
        """Check values and make settings of them.

        Parameters
        ----------
        values
            Value of each setting.
        source
            Where they are from, for messages.
        names
            What settings are called there, if otherwise.

        Raises
        ------
        ConfigError
            Naming every wrong name and value at once.

        Examples
        --------
        >>> class Demo(Settings):
        ...     epochs: int = 3
        >>> Demo.build({"epoch": 5}, source="demo.yaml")
        Traceback (most recent call last):
        ...
        molfun.errors.ConfigError: demo.yaml:
          epoch: unknown setting. Did you mean 'epochs'?
        """
        try:
            return cls(**dict(values))
        except ValidationError as error:
            details = map(dict, error.errors())
            problems = [_problem(cls, detail, names or {}) for detail in details]
            raise ConfigError(f"{source}:\n{listing(problems)}") from None


def _problem(cls: type[BaseModel], detail: Mapping[str, Any], names: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    name = names.get(name, name)
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting.{nearest(name, cls.model_fields)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name:  # of several settings together
        return message
    return f"{name}: {message} (got {detail.get('input')!r})"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; tags that make objects are refused.

    Raises
    ------
    ConfigError
        If the file is missing, is no valid YAML, is no mapping, or sets a name twice.
    UnsafeFileError
        If it is larger or deeper than the limits, or its aliases expand beyond them.
    """
    path = as_path(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        text, encoding = decoded(read_bytes(path, MAX_BYTES))
    except UnicodeDecodeError:
        encoding = "latin-1"
    if encoding == "latin-1":
        raise ConfigError(f"{path} is no valid YAML: it is not UTF-8. Save it as UTF-8.")
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path} must hold `name: value` lines; found {found} instead.")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(values) < len(content):
        names = Counter(str(key).replace("-", "_") for key in content)
        twice = next(name for name, n in names.items() if n > 1)
        raise ConfigError(f"{path} sets {twice!r} twice, with - and with _. Keep one.")
    return values


def parse_yaml(text: str, source: str) -> Any:
    """Value of a YAML text, within the limits of a file of settings.

    Parameters
    ----------
    text
        The YAML.
    source
        What to call it in messages.

    Raises
    ------
    ConfigError
        If it is no valid YAML, or sets a name twice.
    UnsafeFileError
        If it is deeper than `MAX_DEPTH`, or its aliases expand to more than `MAX_VALUES`.

    Examples
    --------
    >>> parse_yaml("lr: 0.1", "demo.yaml")
    {'lr': 0.1}
    >>> parse_yaml("{lr: 1, lr: 2}", "demo.yaml")
    Traceback (most recent call last):
    ...
    molfun.errors.ConfigError: demo.yaml is no valid YAML: 'lr' is set twice, on lines 1 and 1
    """
    try:
        _check_depth(text, source)
        return _load(text, source)
    except MolfunError:
        raise
    # a date such as 2001-99-99 is a ValueError, deep nesting a RecursionError
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{source} is no valid YAML: {reason}") from error


# libyaml's scanner gives the same values, ten times as fast
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):
    """YAML without tags that make objects, and without a name that is set twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                earlier = lines[key.tag, key.value]
                raise yaml.YAMLError(f"{key.value!r} is set twice, on lines {earlier} and {line}")
            lines[key.tag, key.value] = line
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        # 1:1:1 is a number of base 60, for which Python's limit of digits does not hold
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number has more than {_LONGEST_NUMBER:,} characters")
        return int(super().construct_yaml_int(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def _load(text: str, source: str) -> Any:
    """Value of a text whose size is known before the constructor copies what aliases merge."""
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        MAX_VALUES.check(_count(node, {}), source)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(text: str, source: str) -> None:
    """Walk the events, which needs no stack, before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            MAX_DEPTH.check(depth, source)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _count(node: Any, known: dict[int, int]) -> int:
    """Values that a node stands for, each alias counted as what it refers to."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # stands for "not finished"
        is_mapping = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if is_mapping else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    elif known[id(node)] == 0:
        raise yaml.YAMLError("an alias refers to what contains it")
    return known[id(node)]


def check_seed(seed: object) -> int:
    """A seed as it is, if every generator takes it.

    Raises
    ------
    ConfigError
        If it is no whole number from 0 to 2**63 - 1.

    Examples
    --------
    >>> check_seed(42)
    42
    >>> check_seed(-1)
    Traceback (most recent call last):
    molfun.errors.ConfigError: seed must be a whole number from 0 to 2**63 - 1, got -1.
    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= int(seed) < 2**63:  # type: ignore[call-overload]  # it is whole
        raise ConfigError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}.")
    return int(seed)  # type: ignore[call-overload]  # as above


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, in the order it has."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, so that a difference can be named.

    Examples
    --------
    >>> flattened({"head": {"name": "mlp"}, "seed": 0})
    {'head.name': 'mlp', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        flat.update(flattened(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat
