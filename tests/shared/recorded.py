"""A category extracted, with the activations that its levels gave."""

import pytest
import torch

import circuitcore.extraction.stage
from circuitcore.extraction.circuit import extract_circuit


def recorded(prepared, category, name):
    """The product's circuit, and its activations from level 1 on by stage, [levels - 1, N]."""
    stages = []

    class Recorded(circuitcore.extraction.stage.Screening):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            stages.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuitcore.extraction.stage, "Screening", Recorded)
        product = extract_circuit(prepared, category, name)
    return product, [torch.stack([s.at(t) for t in range(1, s.count)]) for s in stages]
