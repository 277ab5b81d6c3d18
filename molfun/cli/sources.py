"""Collect the settings of a command: from a resumed run, a file, ``name=value``, and flags.

Later sources in this list override earlier ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.cli.checks import check_flags, check_run
from molfun.cli.command_settings import FileOptions, RunOptions, TrainOptions
from molfun.cli.console import say
from molfun.cli.from_metatrain import NAMES, translate
from molfun.cli.from_series_config import read_settings
from molfun.cli.outputs import refuse_inputs_of_run
from molfun.cli.places import as_started
from molfun.cli.plugins import load_plugin_of
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import Settings, read_yaml
from molfun.data.kinds.base import with_kinds
from molfun.errors import ConfigError, RunError
from molfun.models.series_config import apply_overrides, written_as

COMMAND_LINE = "command line"
"""Source of flags and of ``name=value``, for messages."""


def settings_of(cls: type[Settings], given: Mapping[str, Any]) -> tuple[Any, FileOptions]:
    """Return the settings of a run, and the options of its start, from the given flags.

    Raises
    ------
    ConfigError
        If names or values are wrong (the text has all of them); or if the file cannot be read,
        names a plugin that the command line does not, or would be overwritten by the run.
    RunError
        If there is nothing to resume.
    """
    options, flags = FileOptions.take(given)
    values = _gathered(cls, flags, options, options.config)
    settings: Any = cls.build(
        values, source=options.config or COMMAND_LINE, sources=_on_the_command_line(options, flags)
    )
    check = check_run if isinstance(settings, FineTuneSettings) else check_flags
    check(settings, flags, resumed=options.resume)
    _keep_file(settings, options, options.config)
    return settings, options


def settings_of_options(given: Mapping[str, Any]) -> tuple[FineTuneSettings, TrainOptions]:
    """Return the settings for a file of options, metatrain's or Molfun's own; see `settings_of`."""
    options, flags = TrainOptions.take(given)
    values = apply_overrides(read_yaml(options.options), options.overrides)
    names = None
    if "architecture" in values:
        found = translate(values, source=options.options)
        for note in found.notes:
            say(f"Note: {note}")
        values, names = {**found.settings, **flags}, NAMES
    else:
        values = _gathered(FineTuneSettings, flags, options, options.options)
    sources = _on_the_command_line(options, flags)
    settings = FineTuneSettings.build(values, source=options.options, names=names, sources=sources)
    check_run(settings, flags, resumed=options.resume)
    _keep_file(settings, options, options.options)
    return settings, options


def _on_the_command_line(options: RunOptions, flags: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that no file gave, with their source for messages."""
    names = [text.partition("=")[0].partition(".")[0].strip() for text in options.overrides]
    return dict.fromkeys([*flags, *names], COMMAND_LINE)


def _gathered(
    cls: type[Settings], given: Mapping[str, Any], options: RunOptions, config: str | None
) -> dict[str, Any]:
    """Return the values of the resumed run, a file, ``name=value`` and flags."""
    values: dict[str, Any] = {}
    stored = as_path(given.get("output") or ".") / "config.yaml"
    if options.resume:
        others = config or options.overrides or {"data", "sequences", "demo"} & given.keys()
        values.update(_of_the_run(stored, given, required=not others))
    if options.overrides or config is not None:
        _refuse_preset(config)
        pretrain = issubclass(cls, PretrainSettings)
        values.update(read_settings(config, options.overrides, pretrain=pretrain))
    _refuse_sections(values, given)
    if "plugin" not in given:  # that of the command line is imported already
        source, trust = config or stored, "trust" in given
        load_plugin_of(source, values.get("plugin"), options.overrides, trust=trust)
    return {**_as_initialised({**values, **given}), **values, **given}


def _refuse_sections(values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse ``strategy.rank=4`` with ``--strategy lora``, which would replace it unread."""
    for name in given:
        section = values.get(name)
        if isinstance(section, Mapping) and not isinstance(given[name], Mapping):
            inside = next(iter(section), "NAME")
            raise ConfigError(
                f"--{name.replace('_', '-')} {given[name]} would replace {name}.{inside}=... . "
                f"{written_as(name, inside)}"
            )


def _of_the_run(stored: Path, given: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    """Return the settings of the run to resume; none if it wrote none and others are given."""
    if "output" not in given:
        if required:
            raise ConfigError("--resume needs the folder of the run: add --output FOLDER.")
        return {}
    if os.path.isfile(stored):  # noqa: PTH113  # no error on a name that cannot be
        return as_started(read_yaml(stored), stored.parent)
    if required:
        raise RunError(
            f"Nothing to resume: {stored} does not exist, so {given['output']} holds no run "
            f"that got beyond its set-up. Look how --output was spelt, or repeat the settings "
            f"of the run: --resume then starts it."
        )
    return {}


def _refuse_preset(config: str | None) -> None:
    """Refuse the name of an architecture given in place of a file."""
    if config is None or Path(config).suffix or Path(config).name != config:
        return
    # a bare word without a file of that name: "tiny", as --preset takes it
    if not os.path.lexists(as_path(config)):
        raise ConfigError(
            f"There is no file {config}. --config takes a YAML file of settings; an architecture "
            f"is named with --preset {config}."
        )


def _as_initialised(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return backbone, head, task and column names of the checkpoint that a run starts from."""
    if values.get("init_from") is None:
        return {}
    from molfun.runs.checkpoint import read_meta

    meta = read_meta(values["init_from"])
    names = {"backbone": meta.backbone["name"]}
    if len(meta.heads) == 1:
        names |= {"head": meta.heads[0].head["name"], "task": meta.heads[0].task["name"]}
    columns = {
        name: meta.data[name]
        for name, field in with_kinds(FineTuneSettings).model_fields.items()
        if name.endswith(("_column", "_columns", "_key"))
        and meta.data.get(name) not in (None, field.default)
    }
    return {**columns, **names}


def _keep_file(settings: Any, options: RunOptions, config: str | None) -> None:
    """Refuse a run that would overwrite the file with its settings."""
    # a resumed run may read its own config.yaml, which it leaves as it is
    if config is not None and not options.resume:
        output = getattr(settings, "output_dir", None) or settings.output
        refuse_inputs_of_run(as_path(output), ["config.yaml"], {"--config": config})
