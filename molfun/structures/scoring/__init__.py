"""Scores of a predicted structure against a reference, and of its own geometry."""
