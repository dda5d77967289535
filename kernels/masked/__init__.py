"""What masked layers share: checks, costs, paths, tiles."""
