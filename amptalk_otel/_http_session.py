"""The HTTP session of an exporter, which sends the headers that the settings name and not what the environment adds.

OpenTelemetry's exporter over HTTP joins those of `OTEL_EXPORTER_OTLP_HEADERS` with those that it is given. Where a
`Config` is made in Python they may be meant for somebody else than the collector that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import requests
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url

_EXPORTERS_OWN = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-type", "user-agent"},
)


class RedirectedError(requests.RequestException):
    """The collector is elsewhere."""


def _of_the_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request


class _Session(requests.Session):
    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._known = _EXPORTERS_OWN.union(name.lower() for name in names)
        self.auth = _of_the_url  # with none at all, `requests` looks into ~/.netrc

    def request(self, method: str, url: str, *args: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        """As that of `requests`, without the headers that nobody asked for, and without following anybody elsewhere.

        The exporter takes a redirection for success: an exception makes it a failure.
        """
        headers = options.get("headers")
        if headers:
            options["headers"] = {name: value for name, value in headers.items() if name.lower() in self._known}
        options["allow_redirects"] = False
        response = super().request(method, url, *args, **options)
        if 300 <= response.status_code < 400:
            response.close()
            raise RedirectedError(f"HTTP status {response.status_code}")
        return response


def session_with(names: Iterable[str]) -> requests.Session:
    """A session that sends no other headers than the exporter's own and these."""
    return _Session(names)
