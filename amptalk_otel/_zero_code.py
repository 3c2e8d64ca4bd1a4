"""Every orchestrator that a program makes, instrumented as it is made."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from amptalk_otel._discovery import Discovery
from amptalk_otel._forks import lock_of
from amptalk_otel._instrumentation import Instrumentation, instrument_orchestrator
from amptalk_otel.config import Config


class ZeroCode:
    """Instruments orchestrators as `instrument_orchestrator` does, from now on until `stop`."""

    def __init__(
        self,
        config: Config,
        *,
        meter_provider: MeterProvider | None = None,
        find_tracer_provider: Callable[[], TracerProvider | None] = lambda: None,
        tell_url: Callable[[str], None] | None = None,
    ) -> None:
        """`tell_url` is told once where the page is.

        `find_tracer_provider` is asked for each orchestrator: a program may set its provider after we came.
        """
        self._config = config
        self._meter_provider = meter_provider
        self._find_tracer_provider = find_tracer_provider
        self._tell_url = tell_url
        self.found_any: bool = False
        self._made: list[tuple[weakref.ref[Any], Instrumentation]] = []
        self._lock = lock_of(self, threading.RLock)
        self._discovery = Discovery(self._found, config.modules)

    def _found(self, orchestrator: Any) -> None:
        with self._lock:
            self.found_any = True
            self._let_go_of_the_dead()
            instrumentation = instrument_orchestrator(
                orchestrator,
                config=self._config,
                meter_provider=self._meter_provider,
                tracer_provider=self._find_tracer_provider(),
            )
            self._made.append((weakref.ref(orchestrator), instrumentation))
            self._keep_to_one_page(instrumentation.metrics_url)

    def _let_go_of_the_dead(self) -> None:
        """Orchestrators that the program dropped, once the last values of their agents have been shown long enough."""
        dead = [entry for entry in self._made if entry[0]() is None and not entry[1].read()]
        for entry in dead:
            self._made.remove(entry)
            entry[1].uninstrument()

    def _keep_to_one_page(self, url: str | None) -> None:
        """With port 0 each call gets a page of its own; here all orchestrators share the first one's."""
        if url is None:
            return
        if self._config.prometheus_port == 0:
            self._config = self._config.with_changes(prometheus_port=urlsplit(url).port)
        tell_url, self._tell_url = self._tell_url, None
        if tell_url is not None:
            tell_url(url)

    def stop(self) -> None:
        """Take everything off again."""
        self._discovery.stop()
        with self._lock:
            for _orchestrator, instrumentation in self._made:
                instrumentation.uninstrument()
            self._made.clear()
