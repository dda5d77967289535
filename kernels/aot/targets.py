"""The GPUs kernels are compiled and judged for: limits of one multiprocessor, peaks of a device.

Sources, all dense (without sparsity) and per device: NVIDIA A100 80GB SXM, H100 SXM and HGX B200
data sheets; AMD Instinct MI300X data sheet; CUDA C++ Programming Guide, "Compute Capabilities"
(shared memory, registers, warps, blocks; popc: 16 a clock and multiprocessor); AMD CDNA 3
instruction set architecture (512 vector registers a lane, 8 waves a SIMD, 64 KiB LDS).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One architecture and the device that stands for it; sizes in bytes, rates a second."""

    arch: str
    device: str
    backend: str  # cuda | hip
    capability: int | str  # as Triton's GPUTarget takes it
    warp: int  # threads
    shared_per_block: int
    shared_per_sm: int
    shared_reserved: int  # by the driver, per block
    warps_per_sm: int
    blocks_per_sm: int
    bandwidth: float
    flops: dict[str, float]  # by input dtype of the product; fp32 is the TF32 / xf32 matrix rate
    popcounts: float  # of 32-bit words

    def occupancy(self, registers: int, shared: int, num_warps: int) -> float:
        """Resident warps / possible warps for a block of ``num_warps`` (0 where none fits).

        ``registers`` a thread; ``shared`` bytes a block.  Registers are given out per warp in
        units of 256 (8 a thread), shared memory in units of 128 bytes a block.
        """
        per_thread = -(-max(registers, 1) // 8) * 8
        if self.backend == "hip":  # four SIMDs, each with its own registers and 8 waves at most
            by_registers = min(8, 512 // per_thread) * 4 // num_warps
        else:  # four partitions of 16,384 registers
            by_registers = 16384 // (per_thread * 32) * 4 // num_warps
        block = -(-(shared + self.shared_reserved) // 128) * 128
        by_shared = self.shared_per_sm // block if block else self.blocks_per_sm
        fits = shared <= self.shared_per_block
        blocks = min(by_registers, by_shared, self.blocks_per_sm, self.warps_per_sm // num_warps)
        return round(fits * blocks * num_warps / self.warps_per_sm, 3)


def _nvidia(arch: str, device: str, capability: int, shared_kib: int, **peaks: object) -> Target:
    return Target(
        arch=arch,
        device=device,
        backend="cuda",
        capability=capability,
        warp=32,
        shared_per_block=(shared_kib - 1) * 1024,
        shared_per_sm=shared_kib * 1024,
        shared_reserved=1024,
        warps_per_sm=64,
        blocks_per_sm=32,
        **peaks,  # type: ignore[arg-type]
    )


TARGETS: dict[str, Target] = {
    target.arch: target
    for target in (
        _nvidia(
            "sm_80",
            "A100 80GB SXM",
            80,
            164,
            bandwidth=2.039e12,
            flops={"fp32": 156e12, "bf16": 312e12, "fp16": 312e12},
            popcounts=108 * 16 * 1.41e9,
        ),
        _nvidia(
            "sm_90",
            "H100 SXM",
            90,
            228,
            bandwidth=3.35e12,
            flops={"fp32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
            popcounts=132 * 16 * 1.83e9,
        ),
        _nvidia(
            "sm_100",
            "B200",
            100,
            228,
            bandwidth=8e12,
            flops={"fp32": 1.125e15, "bf16": 2.25e15, "fp16": 2.25e15},
            popcounts=148 * 16 * 1.85e9,
        ),
        Target(
            arch="gfx942",
            device="MI300X",
            backend="hip",
            capability="gfx942",
            warp=64,
            shared_per_block=64 * 1024,
            shared_per_sm=64 * 1024,
            shared_reserved=0,
            warps_per_sm=32,
            blocks_per_sm=16,
            bandwidth=5.3e12,
            flops={"fp32": 653.7e12, "bf16": 1307.4e12, "fp16": 1307.4e12},
            popcounts=304 * 64 * 2.1e9,
        ),
    )
}


def target(arch: str) -> Target:
    """The target called ``arch``.  Raises ValueError naming the known ones."""
    if arch not in TARGETS:
        raise ValueError(f"target {arch!r}: one of {', '.join(TARGETS)}")
    return TARGETS[arch]
