"""Checks that train nothing: `doctor` of the installation, `data` of what a run would read."""
