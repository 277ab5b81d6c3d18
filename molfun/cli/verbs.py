"""Commands: their names, help texts, settings, and the functions that they run.

Settings and code of a command are imported only when the command is used, so that ``molfun --help``
needs nothing but the texts.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import typer
from typer.core import TyperCommand, TyperGroup

_ARGUMENTS, _EVERYTHING = "molfun.arguments", "molfun.everything"


@dataclass(frozen=True)
class Verb:
    """A command.

    Parameters
    ----------
    name
        Name that the user types.
    help
        Help text, with examples.
    settings
        Classes whose fields become flags, as ``"module:Class"``.
    run
        Function that gets the given flags by name, as ``"module:function"``.
    kinds
        Settings of the registered data kinds that become flags as well: ``"all"``, or only those in
        which samples may differ from the training set (``"again"``).
    folds
        Whether the help hides flags that are seldom used; ``--help-all`` then shows them.
    """

    name: str
    help: str
    settings: tuple[str, ...]
    run: str
    kinds: Literal["none", "all", "again"] = "none"
    folds: bool = False

    def classes(self) -> list[Any]:
        """Return the classes of its settings, those of the data kinds last."""
        from molfun.cli.flags import settings_again
        from molfun.registry import DATASETS

        classes = [_load(path) for path in self.settings]
        if self.kinds == "all":
            classes += [kind.settings for kind in DATASETS.classes()]
        elif self.kinds == "again":
            classes.append(settings_again())
        return classes


TARGETS = "--target-column"
"""Flag of the columns of labels."""


class VerbCommand(TyperCommand):
    """The typer command of a verb, whose flags are made when they are first needed."""

    _params: list[Any]

    def __init__(self, verb: Verb) -> None:
        self._verb = verb
        super().__init__(verb.name, help=inspect.cleandoc(verb.help), callback=self._run)

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """Settings that are flags, each with its class."""
        from molfun.cli.flags import fields_of

        return fields_of(self._verb.classes())

    @property
    def params(self) -> list[Any]:
        """Flags and arguments, made from the settings at the first look."""
        # on first use: making them imports pydantic and all settings, which --help of another
        # command does not need
        if not self._params:
            from molfun.cli.flags import parameters_of

            folded = [_help_all()] if self._verb.folds else []
            self._params = [*parameters_of(self.fields), *folded]
        return self._params

    @params.setter
    def params(self, value: list[Any]) -> None:
        self._params = value

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Import a plugin before flags are made, since its data kinds may add some."""
        ctx.meta[_ARGUMENTS] = list(args)
        if _gives_targets_twice(args):
            # click would keep the last one, and labels would be dropped in silence
            raise typer.BadParameter(
                f"given more than once; give several columns as one value: {TARGETS} A,B",
                ctx=ctx,
                param_hint=TARGETS,
            )
        plugin = _value_of("--plugin", args)
        if plugin is not None and any("plugin" in c.model_fields for c in self._verb.classes()):
            from molfun.cli.console import errors_in_one_line
            from molfun.cli.plugins import load_plugin

            with errors_in_one_line(debug="--debug" in args):
                load_plugin(plugin)
        return super().parse_args(ctx, args)

    def _run(self, **values: Any) -> None:
        from molfun.cli.console import errors_in_one_line
        from molfun.cli.flags import given_in

        given = given_in(values, self.fields)
        with errors_in_one_line(debug=bool(given.get("debug"))):
            _load(self._verb.run)(given)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Hide flags that are seldom used or do not concern the backbone."""
        from molfun.registry import BACKBONES

        # a copy: the command itself must still parse hidden flags
        shown = copy.copy(self)
        backbone = _value_of("--backbone", ctx.meta.get(_ARGUMENTS, ()))
        if backbone not in BACKBONES.names():
            backbone = None
        everything = ctx.meta.get(_EVERYTHING) or not self._verb.folds
        shown.params = [p for p in self.params if self._is_shown(p.name, backbone, everything)]
        TyperCommand.format_help(shown, ctx, formatter)

    def _is_shown(self, name: str, backbone: str | None, everything: bool) -> bool:
        from molfun.cli.checks import concerns

        settings = self.fields.get(name)
        if settings is None:
            return True
        if backbone is not None and not concerns(settings, name, backbone):
            return False
        return everything or not settings.flag(name).hidden


class VerbGroup(TyperGroup):
    """A group of commands made from verbs, followed by those that typer made from functions."""

    verbs: ClassVar[tuple[Verb, ...]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        made = {verb.name: VerbCommand(verb) for verb in self.verbs}
        self.commands = {**made, **self.commands}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the value of a flag among arguments that are not parsed yet."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else following
    return None


def _gives_targets_twice(arguments: Sequence[str]) -> bool:
    """Return whether the flag of the labels is given more than once.

    Examples
    --------
    >>> _gives_targets_twice(["--target-column", "kd", "--target-column=tm"])
    True
    """
    return [argument.partition("=")[0] for argument in arguments].count(TARGETS) > 1


def _help_all() -> Any:
    def show(ctx: typer.Context, value: bool) -> None:
        if value:
            ctx.meta[_EVERYTHING] = True
            typer.echo(ctx.get_help())
            raise typer.Exit

    def command(
        help_all: bool = typer.Option(
            False,
            "--help-all",
            is_eager=True,
            callback=show,
            help="Show all flags; with --backbone NAME those that concern it.",
        ),
    ) -> None: ...

    read_by_typer = typer.Typer(add_completion=False)
    read_by_typer.command()(command)
    return typer.main.get_command(read_by_typer).params[0]
