"""Predicted structures: their confidence, and the files that hold them."""
