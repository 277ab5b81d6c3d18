"""Checks that train nothing: `doctor` of the machine, `data` of what a run would read."""
