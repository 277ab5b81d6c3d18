"""Write the JSON schema of settings files, with which editors complete and check them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from molfun._io import write_text
from molfun._paths import as_path
from molfun.cli.command_settings import SchemaSettings
from molfun.cli.head_settings import settings_of_head
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import Settings
from molfun.data.kinds.base import with_kinds
from molfun.registry import TASKS
from molfun.runs.folder import SCHEMA, RunFolder
from molfun.strict import check_choice

COMMENT = f"# yaml-language-server: $schema={SCHEMA}\n"
"""First line of a ``config.yaml``, with which editors find the schema in the same folder."""


def write_config(folder: RunFolder, settings: Settings, yaml: str) -> None:
    """Write ``config.yaml`` and its schema into the folder of a run."""
    # this order: config.yaml tells the folder of a run that was killed here from a user's own files
    write_text(folder.config, COMMENT + yaml)
    write_text(folder.path / SCHEMA, schema_text(type(settings)))


def schema(given: Mapping[str, Any]) -> None:
    """Print the schema of the file of a command, or write it.

    Raises
    ------
    ConfigError
        If the command has no settings file.
    """
    wanted, _ = SchemaSettings.take(given)
    kinds: dict[str, type[Settings]] = {
        "fine-tune": with_kinds(FineTuneSettings),
        "pretrain": PretrainSettings,
    }
    check_choice("file of settings", wanted.kind, kinds)
    text = schema_text(kinds[wanted.kind])
    if wanted.output is None:
        print(text, end="")
    else:
        write_text(as_path(wanted.output), text)


def schema_text(settings: type[Settings]) -> str:
    """Return the JSON schema of a class of settings.

    Examples
    --------
    >>> text = schema_text(with_kinds(FineTuneSettings))
    >>> json.loads(text)["properties"]["loss"]["enum"]
    ['mse', 'mae', 'huber', 'listmle', 'margin', 'pairwise', 'spearman']
    """
    made: dict[str, Any] = settings.model_json_schema()
    if "heads" in settings.model_fields:
        one = settings_of_head(settings)
        each = _described(one, one.model_json_schema())
        made["properties"]["heads"]["additionalProperties"] = each
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["description"] = "Settings of Molfun."
    return json.dumps(_described(settings, made), indent=1, ensure_ascii=False) + "\n"


def _described(settings: type[Settings], schema: dict[str, Any]) -> dict[str, Any]:
    """Put the help and the registered names of each setting into a schema."""
    for name, entry in schema["properties"].items():
        choices = settings.flag(name).choices
        if choices is not None:
            # the type in the schema is any text: which names are registered is known only now
            types = [entry, *entry.get("anyOf", []), entry.get("items", {})]
            names = [*choices(), *(TASKS if name == "head" else ())]  # a task means its usual head
            next(t for t in types if t.get("type") == "string")["enum"] = names
        entry["description"] = settings.describe(name)
        # pydantic's titles only repeat the names
        entry.pop("title", None)
    return schema
