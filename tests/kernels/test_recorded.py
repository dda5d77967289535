"""What a sweep launches on a pretended device compiles for real ones, and spills on none."""

import os

import pytest

pytest.importorskip("triton", reason="Triton exists on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from launches import as_recorded, cases_of, faults_of
from pretend.device import pretended

import circuitcore


def launches(folder, capability):
    """Of a bundled sweep in float32 and bfloat16 on such a device."""
    found = []
    for dtype in ("float32", "bfloat16"):
        with pretended(capability=capability) as cuda:
            circuitcore.sweep(
                out=folder / dtype, device="cuda:0", categories=["Trouser"], scoring_images=4,
                extraction_images=20, heldout_images=20, fc_levels="0,0.5,0.9,0.99",
                conv_levels="0,0.5,0.9", dtype=dtype,
            )  # fmt: skip
        found += [as_recorded(taken) for taken in cuda.counts.launches]
    return found


@pytest.mark.parametrize(
    ("arch", "capability"),
    [
        ("sm_90", (9, 0)),
        pytest.param("sm_80", (8, 0), marks=pytest.mark.slow),
        pytest.param("sm_100", (10, 0), marks=pytest.mark.slow),
    ],
)
def test_every_launch_compiles_and_none_spills(arch, capability, tmp_path):
    found = launches(tmp_path, capability)
    cases = cases_of(found)
    assert len(found) > len(cases) > 5
    assert len(cases) <= 40, "too many compilations for every run of the tests"
    assert faults_of(found, arch) == {}
