"""Strict construction: an unknown name or value is an error that suggests the nearest one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from molfun.errors import ConfigError, ContractError, MolfunError
from molfun.text import listing, unknown_name


def check_choice(kind: str, value: object, allowed: Iterable[str]) -> None:
    """Check that a value is one of the allowed names, such as those of a ``Literal``.

    Parameters
    ----------
    kind
        Name of the choice in the message: "loss".
    value
        Value to check.
    allowed
        Allowed names.

    Raises
    ------
    ConfigError
        If it is not; the text lists all names and suggests the nearest one.

    Examples
    --------
    >>> check_choice("loss", "hubr", ("mse", "mae", "huber"))
    Traceback (most recent call last):
    molfun.errors.ConfigError: Unknown loss 'hubr'; known: huber, mae, mse. Did you mean 'huber'?
    """
    names = list(allowed)
    if value not in names:
        raise ConfigError(unknown_name(kind, value, names))


def refuse_unknown(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that all names are known.

    Raises
    ------
    ConfigError
        With one line per unknown name.

    Examples
    --------
    >>> refuse_unknown("setting of LoRAFinetune", ["rnak"], ["rank", "alpha"])
    Traceback (most recent call last):
    molfun.errors.ConfigError: Unknown setting of LoRAFinetune 'rnak'; known: alpha, rank. Did you
    mean 'rank'?
    """
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(listing([unknown_name(kind, name, known) for name in unknown]).strip())


def parameters_of(cls: Any) -> tuple[list[str], bool]:
    """Return the argument names of a class, and whether it takes any others (``**kwargs``).

    Examples
    --------
    >>> class Head:
    ...     def __init__(self, width: int, **rest: int) -> None: ...
    >>> parameters_of(Head)
    (['width'], True)
    """
    parameters = inspect.signature(cls).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD], takes_all


def wrong_counts(least: int = 1, **counts: Any) -> list[str]:
    """Return a sentence for each argument that is no whole number of at least `least`.

    Examples
    --------
    >>> wrong_counts(length=8, stride=0)
    ['stride must be a whole number of at least 1, got 0.']
    """
    return [
        f"{name} must be a whole number of at least {least}, got {value!r}."
        for name, value in counts.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < least
    ]


def must_set(cls: type, kind: str, attributes: Mapping[str, str]) -> None:
    """Refuse a class that lacks class attributes; one that is still abstract may leave them open.

    Parameters
    ----------
    cls
        The class, when Python makes it.
    kind
        What it is, for the message.
    attributes
        What each attribute is for.

    Raises
    ------
    ContractError
        Naming class and attribute.

    Examples
    --------
    >>> class Mine: ...
    >>> must_set(Mine, "task", {"name": "Registered name."})
    Traceback (most recent call last):
    molfun.errors.ContractError: The task Mine must set the class attribute name: Registered name.
    """
    # abc collects the abstract methods of a class only after __init_subclass__ has run
    if any(getattr(getattr(cls, n, None), "__isabstractmethod__", False) for n in dir(cls)):
        return
    for name, meaning in attributes.items():
        if not hasattr(cls, name):
            raise ContractError(
                f"The {kind} {cls.__name__} must set the class attribute {name}: {meaning}"
            )


class Configured:
    """Mix-in that stores the constructor arguments of an object as its `config_dict`.

    Examples
    --------
    >>> class Head(Configured):
    ...     def __init__(self, *, width: int, hidden: tuple[int, ...] = (8,)) -> None:
    ...         self.keep_arguments(locals())
    >>> Head(width=4).config_dict
    {'width': 4, 'hidden': [8]}
    """

    _config: dict[str, Any]

    def keep_arguments(self, given: Mapping[str, Any]) -> None:
        """Store those entries of `given` that the constructor takes, with sequences as lists."""
        names, _ = parameters_of(type(self))
        self._config = {name: _listed(given[name]) for name in names if name in given}

    @property
    def config_dict(self) -> dict[str, Any]:
        """Constructor arguments."""
        return dict(self._config)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@contextlib.contextmanager
def mistyped(source: str) -> Iterator[None]:
    """Turn errors about settings of a wrong type or range into a `ConfigError`.

    Parts (heads, encoders, objectives ...) get their arguments from settings files, where a list or
    a text may stand in place of a number.

    Parameters
    ----------
    source
        Name of the settings, for the message.

    Examples
    --------
    >>> with mistyped("head_config"):
    ...     [1] <= 2
    Traceback (most recent call last):
    ...
    molfun.errors.ConfigError: head_config: a value has the wrong type or range ('<=' not supported
    between instances of 'list' and 'int'). Correct it.
    """
    try:
        yield
    except MolfunError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{source}: a value has the wrong type or range ({reason}). Correct it."
        ) from error


def build(cls: Any, settings: Mapping[str, Any], source: str | None = None) -> Any:
    """Build an instance of a class from settings of a file, a command line or a checkpoint.

    Parameters
    ----------
    cls
        The class.
    settings
        Its arguments by name.
    source
        Name of the settings in messages: ``"head_config"``; by default the name of `cls`.

    Returns
    -------
    object
        The instance.

    Raises
    ------
    ConfigError
        If a name is unknown (the text suggests the nearest one), or a value has the wrong type or
        range.

    Examples
    --------
    >>> class Head:
    ...     def __init__(self, width: int = 8) -> None: ...
    >>> build(Head, {"widht": 4}, "head_config")
    Traceback (most recent call last):
    molfun.errors.ConfigError: Unknown key in head_config 'widht'; known: width. Did you mean
    'width'?
    """
    known, takes_all = parameters_of(cls)
    if not takes_all:
        kind = f"key in {source}" if source else f"setting of {cls.__name__}"
        refuse_unknown(kind, settings, known)
    # the class checks its values itself; what it did not expect becomes a readable error
    with mistyped(source or cls.__name__):
        return cls(**settings)
