"""Settings from YAML, command line and Python: typed, and strict about names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from molfun._formats import decoded
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.errors import ConfigError, MolfunError
from molfun.text import alternatives, listing, nearest

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
    def flag(cls, name: str) -> Flag:
        """How a setting stands on the command line."""
        found = (m for m in cls.model_fields[name].metadata if isinstance(m, Flag))
        return next(found, _PLAIN)

    @classmethod
    def choices(cls, name: str) -> list[str]:
        """Values to choose from; none where any value of the type will do.

        Examples
        --------
        >>> class Demo(Settings):
        ...     loss: Literal["mse", "mae"] | None = None
        >>> Demo.choices("loss")
        ['mse', 'mae']
        """
        made = cls.flag(name).choices
        if made is not None:
            return list(made())
        annotation = cls.model_fields[name].annotation
        kinds = [annotation, *get_args(annotation)]
        return [v for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]

    @classmethod
    def describe(cls, name: str) -> str:
        """Description of a setting, with the values to choose from."""
        text = cls.model_fields[name].description or ""
        return text.replace("{choices}", alternatives(cls.choices(name)))

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


@dataclass(frozen=True)
class Flag:
    """How a setting stands on the command line, beside its description.

    Parameters
    ----------
    panel
        Heading in the help under which the flag stands.
    shown
        Text for the default where the value does not say it: "all columns without another role".
    by_kind
        Attribute of `molfun.data.kinds.base.DataKind` that is the default for each kind of data.
    hidden
        Whether only ``--help-all`` shows the flag.
    names
        Other declarations of the flag than ``--name``, such as ``--amp/--no-amp``.
    choices
        Makes the values to choose from, where the type does not list them.
    argument
        Whether the value stands by itself, without the name of the flag before it.
    yaml_only
        Whether there is no flag, only the key of the file.
    again
        Whether ``predict`` and ``evaluate`` have it, for data that differs from the training set.
    path
        Whether the value is a path, which a stored run finds again from another folder.
    needs
        What the backbone must have for the setting to mean anything, `molfun.cli.checks.concerns`.
    of_model
        Whether it decides the model itself, so that a checkpoint to start from leaves no choice.
    """

    panel: str = ""
    shown: str | None = None
    by_kind: str = ""
    hidden: bool = False
    names: tuple[str, ...] = ()
    choices: Callable[[], Iterable[str]] | None = None
    argument: bool = False
    yaml_only: bool = False
    again: bool = False
    path: bool = False
    needs: str = ""
    of_model: bool = False


_PLAIN = Flag()
_FLAG_FIELDS = tuple(field.name for field in dataclasses.fields(Flag))


def option(default: Any, description: str, **details: Any) -> Any:
    """Make a field of settings that is a flag, a key of YAML and an entry of the JSON schema.

    Parameters
    ----------
    default
        Default, or a function without arguments that makes it.
    description
        Help of the flag: what it does, with a full stop; ``{choices}`` stands for the values to
        choose from.
    **details
        Those of `Flag`, and limits as pydantic's ``Field`` takes them (``ge=1``).

    Examples
    --------
    >>> class Demo(Settings):
    ...     epochs: int = option(20, "Passes over the data.", panel="Training", ge=1)
    >>> Demo().epochs, Demo.flag("epochs").panel
    (20, 'Training')
    """
    flag = Flag(**{key: details.pop(key) for key in _FLAG_FIELDS if key in details})
    made = {"default_factory": default} if callable(default) else {"default": default}
    field = Field(**made, description=description, **details)
    field.metadata.append(flag)
    return field


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
    return _with_underscores(content, path)


def _with_underscores(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Write names as Python does: ``lr-head`` is ``lr_head``."""
    names = Counter(str(key).replace("-", "_") for key in content)
    if twice := next((name for name, n in names.items() if n > 1), None):
        raise ConfigError(f"{path} sets {twice!r} twice, with - and with _. Keep one.")
    return dict(zip(names, content.values(), strict=True))


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
