"""Python starts with this where a test put its folder on PYTHONPATH: a child that pretends too.

``PRETEND_CUDA``: how many devices; ``PRETEND_COUNTS``: a folder that gets, at the end of the
process, a file of its totals and of the bytes that each device held at most.
"""

import atexit
import json
import os
from pathlib import Path

if "PRETEND_CUDA" in os.environ:
    from pretend.device import pretended

    pretending = pretended(devices=int(os.environ["PRETEND_CUDA"]))
    cuda = pretending.__enter__()

    def told() -> None:
        found = cuda.counts.totals() | {"peak": dict(cuda.memory.peak)}
        Path(os.environ["PRETEND_COUNTS"], f"{os.getpid()}.json").write_text(json.dumps(found))

    atexit.register(told)
