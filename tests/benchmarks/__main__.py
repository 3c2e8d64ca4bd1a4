"""`python -m tests.benchmarks`."""

from __future__ import annotations

import sys

from tests.benchmarks.command import main
from tests.benchmarks.workers import forget_settings

if __name__ == "__main__":
    forget_settings()
    sys.exit(main())
