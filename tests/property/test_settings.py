"""Whatever stands in the environment, `Config.from_env` gives a usable Config and says what it did not use."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.utils import check_header_validity

from amptalk_otel._guard import logger
from amptalk_otel.config import SETTINGS, Config, Setting
from tests.support import examples

VARIABLES = [variable for setting in SETTINGS for variable in setting.variables]

# Any text that the environment can hold, undecodable bytes included, and texts that are nearly right.
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\0")),
    st.text(st.characters(categories=["Cs"])),
    st.sampled_from(["true", "false", "none", "otlp", "grpc", "http://", "localhost:4317", "a=b", "%=%", "nan", "-0"]),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.sampled_from(["prometheus", "otlp", "console", "none", "", " ", "x"])).map(",".join),
    st.text("htps:/[]@?#%.0123456789 ", max_size=20),
    st.text("ab=,%2C \udc80", max_size=20),
)

each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)


class Records(logging.Handler):
    """What the package logs; Hypothesis can't reset pytest's caplog between examples."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def read(environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    records = Records()
    logger.addHandler(records)
    try:
        config = Config.from_env(environ)
    finally:
        logger.removeHandler(records)
    return config, records.messages


def fields(config: Config) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


@each_setting
@given(text=ANY_TEXT)
def test_any_text_in_a_variable_gives_a_config_and_at_most_one_warning(setting: Setting, text: str) -> None:
    for variable in setting.variables:
        config, messages = read({variable: text})
        assert Config(**fields(config)) == config
        others = fields(config.with_changes(**{setting.field: getattr(Config(), setting.field)}))
        assert others == fields(Config())
        assert len(messages) <= 1
        for message in messages:
            assert message.startswith(f"{variable}=")
            assert message.isprintable()


@each_setting
@given(text=ANY_TEXT)
def test_strict_reading_raises_exactly_where_the_other_warns(setting: Setting, text: str) -> None:
    for variable in setting.variables:
        config, messages = read({variable: text})
        if messages:
            with pytest.raises(ValueError, match=f"^{variable}="):
                Config.from_env({variable: text}, strict=True)
        else:
            assert Config.from_env({variable: text}, strict=True) == config


@given(environ=st.dictionaries(st.sampled_from(VARIABLES), ANY_TEXT))
@settings(max_examples=examples(200))
def test_any_environment_gives_a_config_that_validates(environ: dict[str, str]) -> None:
    config, messages = read(environ)
    assert Config(**fields(config)) == config
    assert len(messages) <= len(environ)


@given(secret=st.text("0123456789abcdefXYZ!@:;, ", min_size=12).filter(lambda text: text[0] != " "), bad=st.booleans())
def test_headers_never_show(secret: str, bad: bool) -> None:
    text = f"no-equals-sign-{secret}".replace("=", "") if bad else f"authorization={quote(secret)}"
    config, messages = read({"OTEL_EXPORTER_OTLP_HEADERS": text})
    assert bool(messages) is bad
    assert config.otlp_headers == ({} if bad else {"authorization": secret})
    for shown in (repr(config), *messages):
        assert secret not in shown
        assert text not in shown


@given(pairs=st.dictionaries(st.text(min_size=1).filter(str.strip), st.text()))
def test_percent_encoded_pairs_come_back_as_they_were(pairs: dict[str, str]) -> None:
    text = ",".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs.items())
    config, messages = read({"OTEL_RESOURCE_ATTRIBUTES": text})
    assert (config.resource_attributes, messages) == (pairs, [])


@given(port=st.integers(0, 65535))
def test_every_port_is_taken(port: int) -> None:
    assert read({"OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}) == (Config(prometheus_port=port), [])


@given(number=st.integers().filter(lambda number: not 0 <= number <= 65535))
def test_no_other_number_is_a_port(number: int) -> None:
    config, messages = read({"OTEL_EXPORTER_PROMETHEUS_PORT": str(number)})
    assert config == Config()
    assert messages == [
        f"OTEL_EXPORTER_PROMETHEUS_PORT='{number}': must be a port number from 0 to 65535; using 8000 instead"
    ]


@given(milliseconds=st.floats(1.0, 31_536_000_000.0))
def test_every_time_from_a_millisecond_to_a_year_is_taken(milliseconds: float) -> None:
    config, messages = read({"OTEL_METRIC_EXPORT_TIMEOUT": repr(milliseconds)})
    assert config.metric_export_timeout_s == milliseconds / 1000.0
    assert messages == []


@given(milliseconds=st.floats(0.0, 10.0, exclude_max=True))
def test_no_interval_is_shorter_than_ten_milliseconds(milliseconds: float) -> None:
    config, messages = read({"OTEL_METRIC_EXPORT_INTERVAL": repr(milliseconds)})
    assert config == Config()
    assert len(messages) == 1


@given(headers=st.dictionaries(st.text(min_size=1).filter(str.strip), st.text(), min_size=1))
def test_headers_are_what_requests_can_send_or_are_refused(headers: dict[str, str]) -> None:
    text = ",".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in headers.items())
    config, messages = read({"OTEL_EXPORTER_OTLP_HEADERS": text})
    assert config.otlp_headers == ({} if messages else headers)
    for header in config.otlp_headers.items():
        check_header_validity(header)
        assert "".join(header).isascii()
