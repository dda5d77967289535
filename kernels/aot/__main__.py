"""``python -m circuitcore.kernels.aot``: compile everything, or write the budget anew."""

import sys

from circuitcore.kernels.aot.compile import main

if __name__ == "__main__":
    sys.exit(main())
