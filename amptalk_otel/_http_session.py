"""The HTTP session of an exporter, which sends the headers that the settings name and not what the environment adds.

OpenTelemetry's exporter over HTTP joins those of `OTEL_EXPORTER_OTLP_HEADERS` with those that it is given. Where a
`Config` is made in Python they may be meant for somebody else than the collector that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import requests

_EXPORTERS_OWN = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-type", "user-agent"},
)


class _Session(requests.Session):
    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._known = _EXPORTERS_OWN.union(name.lower() for name in names)

    def request(self, method: str, url: str, *args: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        """As that of `requests`, without the headers that nobody asked for."""
        headers = options.get("headers")
        if headers:
            options["headers"] = {name: value for name, value in headers.items() if name.lower() in self._known}
        return super().request(method, url, *args, **options)


def session_with(names: Iterable[str]) -> requests.Session:
    """A session that sends no other headers than the exporter's own and these."""
    return _Session(names)
