"""Settings of a command, from the run that is resumed, a file, ``name=value`` and flags.

What comes later in this list replaces what came before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.cli.console import say
from molfun.cli.from_metatrain import NAMES, translate
from molfun.cli.from_series_config import read_settings
from molfun.cli.outputs import refuse_inputs_of_run
from molfun.cli.places import as_started
from molfun.cli.plugins import allow_plugin, load_plugin
from molfun.cli.settings import FineTuneSettings
from molfun.config import Settings, read_yaml
from molfun.data.kinds.base import with_kinds
from molfun.errors import ConfigError, RunError
from molfun.models.series_config import apply_overrides


def gather(
    given: Mapping[str, Any],
    overrides: Sequence[str],
    config: str | None,
    *,
    resume: bool,
    pretrain: bool = False,
) -> dict[str, Any]:
    """Collect the settings of a run; plugins are imported on the way.

    Parameters
    ----------
    given
        Flags by the names of their settings.
    overrides
        ``name=value`` or ``name.sub=value``.
    config
        File of settings.
    resume
        Whether the run in ``output`` is continued, so that its settings come first.
    pretrain
        Whether the run pre-trains.

    Raises
    ------
    ConfigError
        If a file cannot be read, or names a plugin that the command line does not.
    RunError
        If there is nothing to resume.
    """
    values: dict[str, Any] = {}
    stored = as_path(given.get("output") or ".") / "config.yaml"
    if resume and "output" in given:
        others = bool(config or overrides or {"data", "sequences", "demo"} & given.keys())
        values.update(_of_the_run(stored, given, required=not others))
    plugin = given.get("plugin")
    if plugin is not None:
        load_plugin(plugin)
    if overrides or config is not None:
        _refuse_preset(config)
        values.update(read_settings(config, overrides, pretrain=pretrain))
    if plugin is None and values.get("plugin") is not None:
        allow_plugin(values["plugin"], config or stored, overrides, trust="trust" in given)
        load_plugin(values["plugin"])
    started = values if pretrain else {**_as_initialised({**values, **given}), **values}
    return {**started, **given}


def gather_options(
    given: Mapping[str, Any], overrides: Sequence[str], options: str, *, resume: bool
) -> tuple[dict[str, Any], Mapping[str, str] | None]:
    """Collect the settings of a run from a file of options, metatrain's or Molfun's own.

    Returns
    -------
    tuple
        The settings, and what they are called in the file, if otherwise.
    """
    values = apply_overrides(read_yaml(options), overrides)
    if "architecture" not in values:
        return gather(given, overrides, options, resume=resume), None
    if given.get("plugin") is not None:
        load_plugin(given["plugin"])
    found = translate(values, source=options)
    for note in found.notes:
        say(f"Note: {note}")
    return {**found.settings, **given}, NAMES


def _of_the_run(stored: Path, given: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    """Settings of the run being resumed; none if it got nowhere and others are given."""
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
    """Refuse the name of an architecture in place of a file."""
    if config is None or Path(config).suffix or Path(config).name != config:
        return
    if not os.path.lexists(as_path(config)):
        raise ConfigError(
            f"There is no file {config}. --config takes a YAML file of settings; an architecture "
            f"is named with --preset {config}."
        )


def _as_initialised(values: Mapping[str, Any]) -> dict[str, Any]:
    """Backbone, head, task and names of columns of the checkpoint that a run starts from."""
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


def build(
    kind: type[Settings],
    values: Mapping[str, Any],
    config: str | None,
    *,
    resume: bool,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Check the settings of a run, which must not be written over the file that they are read from.

    Parameters
    ----------
    kind
        Class of the settings.
    values
        What `gather` gave.
    config
        File of settings.
    resume
        Whether a run is continued.
    names
        What settings are called in the file, if otherwise.

    Raises
    ------
    ConfigError
        Naming every wrong name and value at once, or the file.
    """
    settings: Any = kind.build(values, source=config or "command line", names=names)
    if config is not None and not resume:
        output = getattr(settings, "output_dir", None) or settings.output
        refuse_inputs_of_run(as_path(output), ["config.yaml"], {"--config": config})
    return settings
