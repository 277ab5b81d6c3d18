"""Flags of a command, made from the fields of its settings.

Names, help, defaults and choices stand on the fields (`molfun.config.option`) and nowhere else. A
command is a function with ``**given``; `with_flags` puts a parameter for each field in its place,
which typer reads as it reads parameters written by hand.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from molfun.config import Settings
from molfun.data.kinds.base import DataKind, kinds_of
from molfun.registry import BACKBONES, DATASETS

_ARGUMENTS, _EVERYTHING = "molfun.arguments", "molfun.everything"


def with_flags(
    settings: type[Settings], panels: Sequence[str], *, again: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each field of its settings.

    Parameters
    ----------
    settings
        Whose fields become flags; those that only a file of settings has are left out.
    panels
        Headings of the help in their order; those that are not listed come after the first.
    again
        Whether the command uses a trained model: only fields for data that differs from the
        training set become flags, and their default is what was used in training.

    Returns
    -------
    callable
        Decorator of a function with ``**given``, which gets the flags that the user gave.

    Examples
    --------
    >>> from molfun.config import option
    >>> class Demo(Settings):
    ...     epochs: int = option(20, "Epochs.", panel="Training")
    >>> @with_flags(Demo, ["Training"])
    ... def command(**given: Any) -> None:
    ...     print(given)
    >>> list(inspect.signature(command).parameters)
    ['epochs']
    >>> command(epochs=None)
    {}
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for p in inspect.signature(function, eval_str=True).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        names = {p.name for p in own}
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(settings, name, again=again),
            )
            for name in _in_order(settings, panels, again=again)
        ]

        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            given = {k: v if k in names else _one_or_several(v) for k, v in arguments.items()}
            function(**{k: v for k, v in given.items() if v is not None or k in names})

        ordered = [
            *(p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD),
            *made,
            *(p for p in own if p.kind is p.KEYWORD_ONLY),
        ]
        command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in ordered} | {"return": None}
        command.settings = settings  # type: ignore[attr-defined]
        return command

    return decorate


def _in_order(settings: type[Settings], panels: Sequence[str], *, again: bool) -> list[str]:
    """Names of the fields that become flags, by panel."""
    flags = {name: settings.flag(name) for name in settings.model_fields}
    names = [n for n, flag in flags.items() if not flag.yaml_only and (flag.again or not again)]
    ranks = {panel: place if place == 0 else place + 1 for place, panel in enumerate(panels)}
    kinds = list(DATASETS)

    def place(name: str) -> tuple[int, int]:
        of = [i for i, k in enumerate(kinds) if name in DATASETS[k].settings.model_fields]
        return ranks.get(flags[name].panel, 1), min(of, default=-1)

    return sorted(names, key=place)


def _annotation(settings: type[Settings], name: str, *, again: bool) -> Any:
    """Type of a flag and what typer needs to know of it."""
    flag = settings.flag(name)
    kind = _plain_type(settings.model_fields[name].annotation)
    names = flag.names or ((f"--{name.replace('_', '-')}",) if kind is bool else ())
    choices = settings.choices(name)
    text = help_of(settings, name, again=again)
    option = typer.Option(
        *names,
        help=text.replace("[", "\\["),  # rich would take it as a style
        rich_help_panel=flag.panel,
        show_default=False,
        autocompletion=_completion(choices) if choices else None,
    )
    return Annotated[kind | None, option]


def _plain_type(annotation: Any) -> Any:
    """Type of the text of a flag: a list of texts where several are taken, else the first type."""
    kinds = get_args(annotation) if _is_union(annotation) else (annotation,)
    if {str, list[str]} <= set(kinds):
        return list[str]
    first = next(kind for kind in kinds if kind is not type(None))
    return first if first in (int, float, bool) else str


def _one_or_several(value: Any) -> Any:
    """A flag that may be given several times and was given once, as its one value."""
    return ("".join(value) or None) if isinstance(value, list) and len(value) < 2 else value


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _completion(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the value of a flag in a shell."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def help_of(settings: type[Settings], name: str, *, again: bool = False) -> str:
    """Description of a field with its default behind it.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> help_of(FineTuneSettings, "batch_size")
    'Samples per batch [1; sequences 8; series 32; atoms 16].'
    """
    text = settings.describe(name)
    default = "as in training" if again else default_of(settings, name)
    bare = text if text.endswith("...") else text.removesuffix(".")
    return f"{bare} [{default}]." if default else text


def default_of(settings: type[Settings], name: str) -> str:
    """Text for the default of a field; empty where there is none to tell."""
    flag, value = settings.flag(name), settings.model_fields[name].default
    if flag.shown is not None:
        return flag.shown
    by_kind = _defaults_by_kind(name, flag.by_kind)
    if by_kind:
        return by_kind
    if isinstance(value, bool):
        return "on" if value else ""
    return "" if value is None else str(value)


def _defaults_by_kind(name: str, attribute: str) -> str:
    """Defaults of the kinds of data: the first alone, the others with what they are for."""
    kinds = [DATASETS[kind] for kind in DATASETS]
    found: dict[str, list[type[DataKind]]] = {}
    for kind in kinds:
        value = getattr(kind, attribute) if attribute else kind.columns.get(name)
        if value is not None:
            found.setdefault(str(value), []).append(kind)
    texts = [(value, ", ".join(kind.name for kind in of)) for value, of in found.items()]
    return "; ".join(v if i == 0 else f"{of} {v}" for i, (v, of) in enumerate(texts))


def concerns(settings: type[Settings], name: str, backbone: str) -> bool:
    """Return whether a setting concerns a backbone.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> from molfun.data.kinds.base import with_kinds
    >>> [concerns(with_kinds(FineTuneSettings), "pdbs", name) for name in ("openfold", "pet")]
    [True, False]
    """
    taken = kinds_of(backbone)
    owners = {kind for kind in DATASETS if name in DATASETS[kind].settings.model_fields}
    needs: Literal["", "demo", "preset"] | str = settings.flag(name).needs
    if needs == "demo":
        return any(kind.has_demo for kind in taken)
    if needs == "preset":
        return bool(BACKBONES.about(backbone, "takes_preset"))
    return not owners or any(kind.name in owners for kind in taken)


class SettingsCommand(TyperCommand):
    """A command whose help shows the usual flags, and with a backbone those that concern it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, which `format_help` needs before they are parsed."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Leave out what is seldom used or does not concern the backbone."""
        shown = copy.copy(self)
        backbone = _value_of("--backbone", ctx.meta.get(_ARGUMENTS, ()))
        if backbone not in BACKBONES.names():
            backbone = None
        shown.params = [
            p for p in self.params if self._is_shown(p.name, backbone, ctx.meta.get(_EVERYTHING))
        ]
        TyperCommand.format_help(shown, ctx, formatter)

    def _is_shown(self, name: str | None, backbone: str | None, everything: bool | None) -> bool:
        settings: type[Settings] = self.callback.settings  # type: ignore[union-attr]
        if name is None or name not in settings.model_fields:
            return True
        if backbone is not None and not concerns(settings, name, backbone):
            return False
        return bool(everything) or not settings.flag(name).hidden


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Value of a flag among arguments that are not parsed yet."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else following
    return None


def _show_everything(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.meta[_EVERYTHING] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        is_eager=True,
        callback=_show_everything,
        help="Show all flags; with --backbone NAME those that concern it.",
    ),
]
