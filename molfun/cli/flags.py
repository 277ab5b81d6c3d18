"""Make typer options from the fields of settings.

Names, help, defaults and choices are defined on the fields (`molfun.config.option`) and nowhere
else. docs/design.md says why neither jsonargparse nor cyclopts does this here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import create_model

from molfun.cli.command_settings import Command
from molfun.cli.shared_settings import PANELS
from molfun.config import Settings, option
from molfun.data.kinds.base import DataKind
from molfun.registry import DATASETS

Fields = Mapping[str, type[Settings]]
"""Fields that become flags, each with its class."""


def fields_of(settings: Iterable[type[Settings]]) -> dict[str, type[Settings]]:
    """Collect the fields of several settings; a field that several have is taken from the first.

    Examples
    --------
    >>> from molfun.config import option
    >>> class Demo(Settings):
    ...     epochs: int = option(20, "Epochs.", panel="Training")
    ...     head_config: dict = option(dict, "Of the head.", yaml_only=True)
    >>> list(fields_of([Demo]))
    ['epochs']
    """
    found: dict[str, type[Settings]] = {}
    for cls in settings:
        for name in cls.model_fields:
            if not cls.flag(name).yaml_only:
                found.setdefault(name, cls)
    return found


def settings_again() -> type[Settings]:
    """Settings of the kinds of data that new samples for a trained model may have otherwise."""
    fields: dict[str, Any] = {}
    for cls in (kind.settings for kind in DATASETS.classes()):
        for name, field in cls.model_fields.items():
            if cls.flag(name).again:
                flag = replace(cls.flag(name), shown="as in training")
                same = option(None, cls.describe(name), **vars(flag))
                fields.setdefault(name, (field.annotation | None, same))
    return create_model("SettingsAgain", __base__=Settings, **fields)


def parameters_of(fields: Fields) -> list[Any]:
    r"""Make the flags and arguments of a command; without defaults, so that given ones are known.

    Examples
    --------
    >>> from molfun.config import option
    >>> class Demo(Settings):
    ...     epochs: int = option(20, "Epochs.", panel="Training")
    >>> [flag] = parameters_of({"epochs": Demo})
    >>> print(flag.opts, flag.help)
    ['--epochs'] Epochs \[20].
    """
    made = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if _is_required(cls, name) else None,
            annotation=_annotation(cls, name),
        )
        for name, cls in sorted(fields.items(), key=_place)
    ]

    # typer reads flags from the signature of a function, so one is made with that signature
    def command() -> None: ...

    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in made}
    read_by_typer = typer.Typer(add_completion=False)
    read_by_typer.command()(command)
    return typer.main.get_command(read_by_typer).params


def given_in(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Return the flags that the user gave, of all that a command has.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> fields = fields_of([FineTuneSettings])
    >>> given_in({"epochs": 3, "lr": None, "data": ["a.csv"], "val": []}, fields)
    {'epochs': 3, 'data': 'a.csv'}
    """
    # all flags default to None, so that a given value counts even if it is the setting's default
    given = {name: value for name, value in values.items() if value not in (None, [], ())}
    for name, value in given.items():  # a flag that may be repeated and was not is one value
        if isinstance(value, list) and len(value) == 1 and not fields[name].flag(name).argument:
            given[name] = value[0]
    return given


def _is_required(settings: type[Settings], name: str) -> bool:
    return settings.model_fields[name].is_required()


def _place(entry: tuple[str, type[Settings]]) -> tuple[bool, int, int]:
    """Place in the help: by panel, in a panel by kind of data; what all commands have is last."""
    name, settings = entry
    flag = settings.flag(name)
    if flag.argument:  # the last argument takes all that are left
        return False, int(not _is_required(settings, name)), 0
    ranks = {panel: place if place == 0 else place + 1 for place, panel in enumerate(PANELS)}
    kinds = DATASETS.classes()
    of = [i for i, kind in enumerate(kinds) if name in kind.settings.model_fields]
    of_all = len(kinds) if name in Command.model_fields else -1
    return True, ranks.get(flag.panel, 1), min(of, default=of_all)


def _annotation(settings: type[Settings], name: str) -> Any:
    """Return the type of a flag with its declaration for typer."""
    flag = settings.flag(name)
    text = help_of(settings, name).replace("[", "\\[")  # rich would take it as a style
    kind = _plain_type(settings.model_fields[name].annotation)
    if not _is_required(settings, name):
        kind = kind | None
    if flag.argument:
        return Annotated[kind, typer.Argument(help=text, show_default=False)]
    names = flag.names or (f"--{name.replace('_', '-')}",)
    choices = settings.choices(name)
    declared = typer.Option(
        *names,
        help=text,
        rich_help_panel=flag.panel or None,
        show_default=False,
        autocompletion=_completion(choices) if choices else None,
    )
    return Annotated[kind, declared]


def _plain_type(annotation: Any) -> Any:
    """Return the type that typer parses: a list if a flag may be repeated, else the first type."""
    kinds = get_args(annotation) if _is_union(annotation) else (annotation,)
    if {str, list[str]} <= set(kinds) or kinds == (list[str],):
        return list[str]
    # other types are parsed from text by pydantic, whose errors name the setting
    first, *others = (kind for kind in kinds if kind is not type(None))
    if any(get_origin(kind) is Literal for kind in others):  # a number, or a word in its place
        return str
    return first if first in (int, float, bool) else str


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _completion(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the value of a flag in a shell."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def help_of(settings: type[Settings], name: str) -> str:
    """Return the description of a field, followed by its default.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> help_of(FineTuneSettings, "batch_size")
    'Samples per batch [1; sequences 8; series 32; atoms 16].'
    """
    text = settings.describe(name)
    default = default_of(settings, name)
    bare = text if text.endswith("...") else text.removesuffix(".")
    return f"{bare} [{default}]." if default else text


def default_of(settings: type[Settings], name: str) -> str:
    """Return the text of a field's default; empty if there is none to show."""
    flag, field = settings.flag(name), settings.model_fields[name]
    if flag.shown is not None:
        return flag.shown
    if field.is_required() or field.default_factory is not None:
        return ""
    value = field.default
    by_kind = _defaults_by_kind(name, flag.by_kind)
    if by_kind:
        return by_kind
    if isinstance(value, bool):
        return "on" if value else ""
    return "" if value is None else str(value)


def _defaults_by_kind(name: str, attribute: str) -> str:
    """Return the defaults per data kind: the first alone, the others with the names of kinds."""
    found: dict[str, list[type[DataKind]]] = {}
    for kind in DATASETS.classes():
        value = getattr(kind, attribute) if attribute else kind.columns.get(name)
        if value is not None:
            found.setdefault(str(value), []).append(kind)
    texts = [(value, ", ".join(kind.name for kind in of)) for value, of in found.items()]
    return "; ".join(v if i == 0 else f"{of} {v}" for i, (v, of) in enumerate(texts))
