"""The metrics page as a mapping, free ports for it, and a clean slate for the process's monitor."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import get_monitor, performance_monitor
from tests.integration.servers import reserve_port

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Page:
    """Every sample of one scrape. Refuses a page that tells a series or the type of a metric twice."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        types = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
        self.types = dict(types)
        assert len(self.types) == len(types), f"a type is told twice: {types}"
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} is told twice"
                self.samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """The series of this name that has these labels, among others; None without one."""
        found = [value for (other, have), value in self.samples.items() if other == name and labels.items() <= have]
        assert len(found) <= 1, f"{len(found)} series {name} {labels}"
        return found[0] if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(sorted(have)) for other, have in self.samples if other == name]

    def names(self, prefix: str) -> set[str]:
        return {name for name, _labels in self.samples if name.startswith(prefix)}


def scrape_now(url: str | None) -> Page:
    """Read a page from this thread."""
    assert url is not None
    with _opener.open(url, timeout=10) as response:
        return Page(response.read().decode())


async def scrape(url: str | None) -> Page:
    """Read a page from another thread, as Prometheus would."""
    return await asyncio.to_thread(scrape_now, url)


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile, and that our server may bind."""
    with reserve_port() as reserved:
        yield reserved.getsockname()[1]


@contextmanager
def no_global_monitor() -> Iterator[None]:
    """Begin without a process's monitor, and end the one that there is afterwards."""
    performance_monitor._global = None
    try:
        yield
    finally:
        monitor = get_monitor(create_if_none=False)
        performance_monitor._global = None
        if monitor is not None:
            asyncio.run(monitor.stop_collecting())
