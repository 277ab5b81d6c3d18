"""Files of a run: its folder, its portable checkpoint and its resume state."""
