"""`python -m amptalk_otel app.py [arguments]`: the same as `amptalk-otel run app.py [arguments]`."""

from __future__ import annotations

import sys

from amptalk_otel.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
