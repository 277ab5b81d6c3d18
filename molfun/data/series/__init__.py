"""Time series: readers of files and arrays, samples and windows of them, synthetic ones."""
