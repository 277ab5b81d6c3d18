"""Building blocks shared by heads and strategies: pooling, LoRA, parameter groups."""
