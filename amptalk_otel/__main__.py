"""`python -m amptalk_otel app.py [arguments]`: the same as `amptalk-otel run app.py [arguments]`.

`demo` and `run` are the commands, unless there are programs of these names.
"""

from __future__ import annotations

import os
import sys

from amptalk_otel.cli import main


def _arguments(given: list[str]) -> list[str]:
    """What the command is called with: `run`, unless it is named."""
    is_command = given[:1] in (["demo"], ["run"]) and not os.path.exists(given[0])  # noqa: PTH110 - as in cli
    return given if is_command else ["run", *given]


if __name__ == "__main__":
    sys.exit(main(_arguments(sys.argv[1:])))
