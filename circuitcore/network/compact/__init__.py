"""What of a pruned network has to be computed, and how little that comes to."""
