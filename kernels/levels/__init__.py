"""`assign_levels`: which weights are pruned at which level."""
