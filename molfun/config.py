"""Settings from YAML, command line and Python: typed, and strict about names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from molfun.errors import ConfigError, listing, nearest

T = TypeVar("T", bound="Settings")


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
        If the file is missing, is no valid YAML, or is no mapping.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must hold `name: value` lines; found {type(content).__name__} instead."
        )
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, in the order it has."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
