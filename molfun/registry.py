"""Names for parts: backbones, heads, tasks and strategies, from Molfun and from other packages.

A part is registered under a name, as a class or as ``"package.module:Class"`` (imported when it is
first asked for). Other packages add theirs with an entry point in the group
``molfun.<kind>``, for example::

    [project.entry-points."molfun.heads"]
    my_head = "my_package.heads:MyHead"
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

from molfun.errors import ConfigError, unknown_name


class Registry:
    """A mapping from names to classes that are imported on first use.

    Parameters
    ----------
    kind
        What the entries are, in the plural ("heads"); names the entry-point group.
    singular
        One of them, for messages; by default `kind` without its last letter.

    Examples
    --------
    >>> registry = Registry("fruits")
    >>> @registry.register("apple")
    ... class Apple: ...
    >>> registry["apple"] is Apple
    True
    """

    def __init__(self, kind: str, singular: str | None = None) -> None:
        self.kind = kind
        self.singular = singular or kind[:-1]
        self._entries: dict[str, Any] = {}
        self._scanned = False

    def register(self, name: str, target: str | None = None) -> Callable[[type], type]:
        """Register a class under `name`: as a decorator, or by its import path."""
        if target is not None:
            self._entries[name] = target

        def decorate(cls: type) -> type:
            self._entries[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ConfigError(unknown_name(self.singular, name, self))
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._scan()
        return iter(self._entries)

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for entry in entry_points(group=f"molfun.{self.kind}"):
            self._entries.setdefault(entry.name, entry.value)


BACKBONES = Registry("backbones")
HEADS = Registry("heads")
TASKS = Registry("tasks")
STRATEGIES = Registry("strategies", "strategy")

BACKBONES.register("openfold", "molfun.backbones.openfold:OpenFoldBackbone")
BACKBONES.register("esm2", "molfun.backbones.esm2:ESM2Backbone")
HEADS.register("affinity", "molfun.heads.affinity:AffinityHead")
TASKS.register("regression", "molfun.tasks.regression:RegressionTask")
STRATEGIES.register("head_only", "molfun.training.head_only:HeadOnlyFinetune")
STRATEGIES.register("lora", "molfun.training.lora:LoRAFinetune")
STRATEGIES.register("partial", "molfun.training.partial:PartialFinetune")
STRATEGIES.register("full", "molfun.training.full:FullFinetune")
