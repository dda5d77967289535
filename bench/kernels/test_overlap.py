"""Overlap of 64 AlexNet circuits: popcount over packed masks against boolean tensors."""

import torch

from circuitcore.kernels.overlap.operation import overlap_cost, overlap_counts

MASKS = 64
BYTES = 56_998_592 // 8  # relevant weights of one AlexNet category
TARGET = 10  # times faster than boolean tensors
BLOCK = 1 << 22


def booleans(packed: torch.Tensor) -> torch.Tensor:
    bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> bits) & 1).bool().flatten(1)


def product(kept: torch.Tensor) -> torch.Tensor:
    """The same counts as a matrix product of the booleans, a block of columns at a time.

    float32 is exact up to 2**24 weights a block.
    """
    total = torch.zeros(len(kept), len(kept), dtype=torch.int64, device=kept.device)
    for block in kept.split(BLOCK, dim=1):
        values = block.float()
        total += (values @ values.T).long()
    return total


def test_overlap_of_64_masks(race, device):
    g = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (MASKS, BYTES), dtype=torch.uint8, generator=g).to(device)
    part = BYTES // 8  # the product runs on an eighth of the weights, the pairs on 8 of 2,080
    kept = torch.stack([booleans(row[None])[0] for row in packed[:8]])
    eighth = booleans(packed[:, :part])
    pairs = MASKS * (MASKS + 1) // 2
    found: dict[str, torch.Tensor] = {}

    def one_against_eight() -> None:
        found["pairs"] = torch.stack([(kept[0] & row).sum() for row in kept])

    def one_product() -> None:
        found["product"] = product(eighth)

    ours, naive, reading = "popcount (this)", "boolean (a & b).sum() a pair", "reading once"
    result = race(
        {
            ours: lambda: overlap_counts(packed),
            naive: one_against_eight,
            "booleans as float32, one product": one_product,
            reading: lambda: packed.view(torch.int64).sum(),
        },
        ours=ours,
        rounds=3,
        scale={naive: pairs / 8, "booleans as float32, one product": BYTES / part},
        once=(naive, "booleans as float32, one product"),
        note={"dtype": "uint8", "shape": f"{MASKS} masks of {BYTES} bytes"},
    )
    assert torch.equal(overlap_counts(packed)[0][0, :8], found["pairs"])
    assert torch.equal(overlap_counts(packed[:, :part])[0], found["product"])

    moved, words = overlap_cost(MASKS, BYTES)
    seconds, once = result.median(ours), result.median(reading)
    print(f"  {result.ratio(naive, ours):.0f} x over boolean tensors; target {TARGET} x")
    print(f"  each mask read once: {moved / seconds / 1e9:.2f} GB/s,", end=" ")
    print(f"{once / seconds:.1%} of the memory's {moved / once / 1e9:.1f} GB/s;", end=" ")
    print(f"pairs: {2 * words * 4 / seconds / 1e9:.0f} GB/s from the caches", end=" ")
    print("(the bit count bounds it, not memory)")
