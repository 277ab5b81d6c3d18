"""Several processes on one model: how they start, what they add up, and how they end."""
