"""The bundled example as it is now, without what no two runs share: times, memory, versions, paths.

    python tests/frozen/freeze.py            writes tests/frozen/bundled.json and report.txt anew

The command line alone is used, and files as they lie on disk, so that the same lines hold whatever
the code is called.
"""

import hashlib
import html
import json
import os
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLE = HERE / "bundled.json"
REPORT = HERE / "report.txt"
OPTIONS = ("--device", "cpu", "--dtype", "float32", "--format", "json", "--quiet")
NOT_COMPARED = {
    "seconds",
    "floor_seconds",
    "memory_bytes",
    "disk_bytes",
    "versions",
    "folder",
    "device",
    "out",
}
NOT_SAID = {"seconds", "memory, MB", "python", "torch", "numpy"}  # heads of the report's rows
THREADS = {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def command(*arguments, cwd):
    """Standard output of ``circuitcore ARGUMENT...``, in a process of two threads."""
    words = [sys.executable, "-P", "-m", "circuitcore.cli.main", *map(str, arguments)]
    said = subprocess.run(words, cwd=cwd, env=os.environ | THREADS, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    return said.stdout


def comparable(value):
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in NOT_COMPARED}
    return [comparable(v) for v in value] if isinstance(value, list) else value


def unit_file(path):
    """Kept weights and sha256 by layer of one unit file's masks, and the file's name."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    found = {}
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            bits = content[start + begin : start + end]
            kept = int.from_bytes(bits, "big").bit_count()
            found[name] = {"kept": kept, "sha256": hashlib.sha256(bits).hexdigest()}
    return {"key": path.stem, "masks": found}


def report_text(page):
    """What a page says, line by line, without figures and what differs from run to run."""
    page = re.sub(r"<(svg|style|script)\b.*?</\1>", "", page, flags=re.S)
    rows = re.split(r"(?=<tr\b|<dt\b)", page)
    texts = (html.unescape(re.sub(r"<[^>]*>", "\n", row)).split("\n") for row in rows)
    said = [[line.strip() for line in text if line.strip()] for text in texts]
    kept = [lines for lines in said if lines and lines[0] not in NOT_SAID]
    return [line for lines in kept for line in lines if not line.startswith("/")]


def machine():
    """What rounding depends on: where this is equal, so are masks, bit by bit.

    With the same instructions torch's products are summed in another order by another vendor's
    processor.
    """
    import torch

    return f"{vendor()} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def vendor():
    """Who made the processor, as the kernel says; its architecture where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return named[0] if named else platform.machine()


def freeze(folder):
    """The example swept into ``folder``: its document, units, plan and the text of its report."""
    document = json.loads(command("sweep", *OPTIONS, "--out", folder / "run", cwd=folder))
    planned = json.loads(command("plan", "--no-probe", *OPTIONS, cwd=folder))
    units = [unit_file(folder / "run" / c["circuit"]["file"]) for c in document["categories"]]
    example = {
        "machine": machine(),
        "document": comparable(document),
        "units": units,
        "plan": comparable(planned),
    }
    return example, report_text((folder / "run" / "report.html").read_text(encoding="utf-8"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        example, report = freeze(Path(scratch))
    EXAMPLE.write_text(json.dumps(example, indent=0, sort_keys=True) + "\n")
    REPORT.write_text("\n".join(report) + "\n")
