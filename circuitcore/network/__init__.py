"""The network as a list of steps: traced, run with masks, compacted."""
