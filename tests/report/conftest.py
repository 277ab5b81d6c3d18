"""Fixtures of the folders of finished runs."""

from finished_runs import family as family
from finished_runs import written as written
