"""Seeds of what is drawn at random: one stream a category, and a layer, whatever else is run."""


def unit_seed(seed: int, unit: int) -> int:
    """The seed of output unit ``unit`` in a run of ``--seed`` ``seed``."""
    return seed * 1_000_003 + unit


def layer_seed(seed: int, unit: int, layer: int) -> int:
    """The seed of the ``layer``-th prunable layer for output unit ``unit``."""
    return unit_seed(seed, unit) * 1009 + layer
