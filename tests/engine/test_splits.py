"""The two largest logits are all that a judge needs of the other outputs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitcore.engine.splits import Largest, Split
from circuitcore.extraction.judging import judge_of


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=k, max_size=k), min_size=1, max_size=8
        )
    )
)
def test_the_others_largest_is_the_maximum_over_all_but_one(rows):
    """Few values, so that ties are common."""
    logits = torch.tensor(rows)
    largest = Largest.of(logits)
    for unit in range(logits.shape[1]):
        others = logits.clone()
        others[:, unit] = -torch.inf
        assert torch.equal(largest.others(unit), others.max(1).values)


def test_a_judge_reads_them_once_a_split():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    split = Split(torch.zeros(50, 1, 1, 1).numpy(), torch.arange(50) % 4, logits, {})
    judges = [judge_of(split, unit, "target") for unit in range(4)]
    assert split.largest is split.largest
    for unit, judge in enumerate(judges):
        right = (logits.argmax(1) == unit) & (split.labels == unit)
        found = judge.at(judge.unpruned, 0.0)
        assert found.hit == int(right.sum()) / int((split.labels == unit).sum())
        assert found.false_alarms == int(((logits.argmax(1) == unit) & ~right).sum())
