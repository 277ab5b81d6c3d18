"""A registry for parts that derive from the base classes in this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from molfun.errors import ConfigError
from molfun.registry import Registry


class GuideRegistry:
    """View of one of Molfun's registries that also takes classes with another base class.

    Such a class is wrapped when it is registered, so that the rest of Molfun finds a part of its
    own under that name; ``registry[name]`` returns the class itself. Both share one list of names.

    Parameters
    ----------
    registry
        Molfun's registry, which holds the parts.
    guide
        The other base class, for example `BaseTaskHead`.
    own
        Molfun's own base class.
    adapter
        Subclass of `own` that wraps the class in its attribute ``wrapped``.
    """

    def __init__(self, registry: Registry, *, guide: type, own: type, adapter: type) -> None:
        self._registry, self._guide, self._own, self._adapter = registry, guide, own, adapter

    def __setitem__(self, name: str, cls: type) -> None:
        """Register a class.

        Raises
        ------
        ConfigError
            If it derives from neither base.
        """
        if not (isinstance(cls, type) and issubclass(cls, (self._guide, self._own))):
            raise ConfigError(
                f"{getattr(cls, '__name__', cls)!s} cannot be registered as {name!r}: derive it "
                f"from {self._guide.__name__}."
            )
        if issubclass(cls, self._guide):
            about = {"wrapped": cls, "name": name, "__doc__": cls.__doc__}
            cls = type(cls.__name__, (self._adapter,), about)
        self._registry[name] = cls

    def register(self, name: str) -> Callable[[type], type]:
        """Register the decorated class under `name`."""

        def decorate(cls: type) -> type:
            self[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> Any:
        entry = self._registry[name]
        return getattr(entry, "wrapped", entry)

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)
