"""The decision: accuracy, bounds, screening, stages, a category's circuit, its plan."""
