"""`python -m amptalk_otel app.py [arguments]`: the same as `amptalk-otel run app.py [arguments]`.

`demo` and `run` are the commands, unless there are programs of these names.
"""

from __future__ import annotations

import os
import sys

from amptalk_otel.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    is_command = arguments[:1] in (["demo"], ["run"]) and not os.path.exists(arguments[0])  # noqa: PTH110 - as in cli
    sys.exit(main(arguments if is_command else ["run", *arguments]))
