"""Searches of settings: trials of one objective, drawn by optuna, that survive any kill.

`Study` runs trials and keeps them in a folder that several processes may share; `Space` says what
a trial draws. ``molfun tune`` is a front end of both.
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
