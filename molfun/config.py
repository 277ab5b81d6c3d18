"""Typed settings from YAML, command line and Python; unknown names are errors."""

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
"""Largest settings file in bytes; a long one has about 10 kB."""
MAX_DEPTH = Limit("YAML_DEPTH", 50, "levels")
"""Deepest nesting of a settings file; the deepest real one has seven levels."""
MAX_VALUES = Limit("YAML_VALUES", 100_000, "values")
"""Largest number of values with aliases expanded: nine lines can stand for a billion values."""
_LONGEST_NUMBER = 1000
"""Longest whole number in characters; converting one takes quadratic time."""


class Settings(BaseModel):
    """Base of typed settings: unknown names are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def flag(cls, name: str) -> Flag:
        """Return how a setting appears on the command line."""
        found = (m for m in cls.model_fields[name].metadata if isinstance(m, Flag))
        return next(found, _PLAIN)

    @classmethod
    def choices(cls, name: str) -> list[str]:
        """Return the allowed values of a setting; empty if any value of its type is allowed.

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

    def is_changed(self, name: str) -> bool:
        """Return whether a setting has another value than its default."""
        field = type(self).model_fields[name]
        return bool(getattr(self, name) != field.get_default(call_default_factory=True))

    @classmethod
    def describe(cls, name: str) -> str:
        """Return the description of a setting, with its allowed values."""
        text = cls.model_fields[name].description or ""
        return text.replace("{choices}", alternatives(cls.choices(name)))

    @classmethod
    def build(
        cls: type[T],
        values: Mapping[str, Any],
        *,
        source: str = "settings",
        names: Mapping[str, str] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> T:
        """Validate values and return them as settings.

        Parameters
        ----------
        values
            Values by the names of the settings.
        source
            Origin of the values, for messages.
        names
            Names of settings in the source, where they differ from those of the class.
        sources
            Origin of those values that are not from `source`, by setting.

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
            problems: dict[str, list[str]] = {}
            for detail in error.errors():
                setting = str(detail["loc"][0]) if detail["loc"] else ""
                where = (sources or {}).get(setting, source)
                # a setting with parts of its own tells what is wrong in each on a line
                lines = _problem(cls, dict(detail), names or {}).splitlines()
                problems.setdefault(where, []).extend(lines)
            # pydantic's own text adds types and links to its documentation
            texts = [f"{where}:\n{listing(lines)}" for where, lines in problems.items()]
            raise ConfigError("\n".join(texts)) from None


@dataclass(frozen=True)
class Flag:
    """Appearance of a setting on the command line.

    Parameters
    ----------
    panel
        Heading of the help under which the flag is listed.
    shown
        Text for a default that the value does not explain: "all columns without another role".
    by_kind
        Attribute of `molfun.data.kinds.base.DataKind` that is the default for each kind of data.
    hidden
        Whether only ``--help-all`` shows the flag.
    names
        Declarations of the flag in place of ``--name``, such as ``--amp/--no-amp``.
    choices
        Function that returns the allowed values, if the type does not list them.
    argument
        Whether the setting is a positional argument.
    yaml_only
        Whether the setting has no flag, only a key in the file.
    again
        Whether ``predict`` and ``evaluate`` have the flag, for data that differs from training.
    path
        Whether the value is a path; those are written so that a run finds them from any folder.
    needs
        Ability of the backbone without which the setting has no meaning; see
        `molfun.cli.checks.concerns`.
    of_model
        Whether the setting defines the model, and so cannot be changed for a given checkpoint.
    of_head
        Whether each of several heads has its own.
    read_with
        Name of another setting, and those of its values that read this one; empty if all do.
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
    of_head: bool = False
    read_with: tuple[str, ...] = ()


_PLAIN = Flag()
_FLAG_FIELDS = tuple(field.name for field in dataclasses.fields(Flag))


def option(default: Any, description: str, **details: Any) -> Any:
    """Return a field of settings that is a flag, a YAML key and an entry of the JSON schema.

    Parameters
    ----------
    default
        Default value, or a function without arguments that returns it.
    description
        Help text of the flag, ending with a full stop; ``{choices}`` is replaced by the allowed
        values.
    **details
        Arguments of `Flag`, and limits of pydantic's ``Field`` (``ge=1``).

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
    setting = ".".join(str(part) for part in detail["loc"])
    name = names.get(setting, setting)
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting.{nearest(setting, cls.model_fields)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name or detail["type"] == "parts":  # of several settings together, or told already
        return message
    return f"{name}: {message} (got {detail.get('input')!r})"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; tags that construct Python objects are refused.

    Raises
    ------
    ConfigError
        If the file is missing, is not valid YAML or not a mapping, or sets a name twice.
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
    """Return the mapping with underscores in names: ``lr-head`` becomes ``lr_head``."""
    names = Counter(str(key).replace("-", "_") for key in content)
    if twice := next((name for name, n in names.items() if n > 1), None):
        raise ConfigError(f"{path} sets {twice!r} twice, with - and with _. Keep one.")
    return dict(zip(names, content.values(), strict=True))


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text, within the limits of a settings file.

    Parameters
    ----------
    text
        The YAML.
    source
        Name of the text in messages.

    Raises
    ------
    ConfigError
        If it is not valid YAML, or sets a name twice.
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


# libyaml's scanner gives the same values ten times as fast, but is not in every build of PyYAML
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):
    """Loader of YAML that refuses tags for Python objects, and names that are set twice."""

    # PyYAML lets the last of two equal keys win silently, and a run would use a hidden value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            # a merge key (<<) may occur several times
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                earlier = lines[key.tag, key.value]
                raise yaml.YAMLError(f"{key.value!r} is set twice, on lines {earlier} and {line}")
            lines[key.tag, key.value] = line
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        # 1:1:1 is a number in base 60 (YAML 1.1), which escapes Python's own limit of digits
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number has more than {_LONGEST_NUMBER:,} characters")
        return int(super().construct_yaml_int(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def _load(text: str, source: str) -> Any:
    """Return the value of a text, after counting its values.

    The count comes before the constructor, which copies what aliases and merge keys refer to.
    """
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
    """Check the nesting on the stream of events, which unlike the node tree needs no recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            MAX_DEPTH.check(depth, source)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _count(node: Any, known: dict[int, int]) -> int:
    """Return the number of values of a node, with each alias counted as its content."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # 0 marks a node that is being counted, to find cycles
        is_mapping = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if is_mapping else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    elif known[id(node)] == 0:
        raise yaml.YAMLError("an alias refers to what contains it")
    return known[id(node)]


def check_seed(seed: object) -> int:
    """Return a seed, if the generators of Python, NumPy and torch can all take it.

    Raises
    ------
    ConfigError
        If it is not a whole number from 0 to 2**63 - 1.

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
    """Return a mapping as YAML text, in its own order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names, so that each difference has a name.

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
