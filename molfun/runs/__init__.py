"""What a run leaves on disk: its folder, its portable checkpoint and its resume state."""
