"""Settings: where they come from, what goes before what, and what a bad value costs."""

from __future__ import annotations

import dataclasses
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from amptalk_otel.config import DEFAULTS, SETTINGS, Config, Setting

# what each setting of the OTLP exporters is called after `otlp_`, and in a variable
OF_OTLP = {
    "protocol": "PROTOCOL",
    "endpoint": "ENDPOINT",
    "headers": "HEADERS",
    "timeout_s": "TIMEOUT",
    "compression": "COMPRESSION",
    "insecure": "INSECURE",
    "certificate": "CERTIFICATE",
    "client_key": "CLIENT_KEY",
    "client_certificate": "CLIENT_CERTIFICATE",
}

DEFAULT_VALUES: dict[str, Any] = {
    "sdk_disabled": False,
    "service_name": None,
    "resource_attributes": {},
    "metrics_exporters": ("prometheus",),
    "prometheus_host": "localhost",
    "prometheus_port": 8000,
    "prometheus_scope_labels": False,
    "prometheus_web_config": None,
    "prometheus_bearer_token_file": None,
    "metric_export_interval_s": 60.0,
    "metric_export_timeout_s": 30.0,
    "otlp_protocol": "http/protobuf",
    "otlp_endpoint": None,
    "otlp_headers": {},
    "otlp_timeout_s": 10.0,
    "otlp_compression": "none",
    "otlp_insecure": None,
    "otlp_certificate": None,
    "otlp_client_key": None,
    "otlp_client_certificate": None,
    "traces_exporters": ("none",),
    "traces_sampler": "parentbased_always_on",
    "traces_sampler_arg": 1.0,
    "propagators": ("tracecontext", "baggage"),
    "trace_relation": "parent",
    "exemplar_filter": "trace_based",
    "message_size_sample_every": 100,
    "departed_agents_linger_s": 300.0,
    "max_agents": 1000,
    "agent_grouping": "id",
    "agents_include": (),
    "agents_exclude": (),
    "modules": (),
    **{f"otlp_{signal}_{name}": None for signal in ("metrics", "traces") for name in OF_OTLP},
}

NOT_UTF8 = "caf\udce9"  # what os.environ makes of the byte E9

# variable's text that is right, and the value it means
GOOD: dict[str, tuple[str, Any]] = {
    "sdk_disabled": ("True", True),
    "service_name": ("meeting-bot", "meeting-bot"),
    "resource_attributes": (
        "deployment.environment=test, team=a%2Cb",
        {"deployment.environment": "test", "team": "a,b"},
    ),
    "metrics_exporters": ("otlp, prometheus", ("otlp", "prometheus")),
    "prometheus_host": ("0.0.0.0", "0.0.0.0"),
    "prometheus_port": ("9464", 9464),
    "prometheus_scope_labels": ("true", True),
    "prometheus_web_config": ("web.yml", "web.yml"),
    "prometheus_bearer_token_file": ("token", "token"),
    "metric_export_interval_s": ("2500", 2.5),
    "metric_export_timeout_s": ("500", 0.5),
    "otlp_protocol": ("grpc", "grpc"),
    "otlp_endpoint": ("http://collector:4318", "http://collector:4318"),
    "otlp_headers": ("x-key=1,authorization=Bearer%20abc", {"x-key": "1", "authorization": "Bearer abc"}),
    "otlp_timeout_s": ("2.5", 2.5),
    "otlp_compression": ("GZIP", "gzip"),
    "otlp_insecure": ("false", False),
    "otlp_certificate": ("ca.pem", "ca.pem"),
    "otlp_client_key": ("key.pem", "key.pem"),
    "otlp_client_certificate": ("client.pem", "client.pem"),
    "traces_exporters": ("console, OTLP", ("console", "otlp")),
    "traces_sampler": ("TraceIdRatio", "traceidratio"),
    "traces_sampler_arg": ("0.25", 0.25),
    "propagators": ("baggage,b3,", ("baggage", "b3")),
    "trace_relation": ("Link", "link"),
    "exemplar_filter": ("always_off", "always_off"),
    "message_size_sample_every": ("0", 0),
    "departed_agents_linger_s": ("1000", 1.0),
    "max_agents": ("0", 0),
    "agent_grouping": ("Class", "class"),
    "agents_include": ("front-*, *[0-9]", ("front-*", "*[0-9]")),
    "agents_exclude": ("test?", ("test?",)),
    "modules": ("meeting.core, other", ("meeting.core", "other")),
    "otlp_metrics_endpoint": ("https://collector/in", "https://collector/in"),
    "otlp_traces_endpoint": ("https://collector/spans", "https://collector/spans"),
}

# variable's text that is wrong, and what the warning says is used instead
BAD: dict[str, tuple[str, str]] = {
    "sdk_disabled": ("yes", "False"),
    "service_name": (NOT_UTF8, "nothing"),
    "resource_attributes": ("deployment.environment", "nothing"),
    "metrics_exporters": ("otlp,jaeger", "otlp"),
    "prometheus_host": (NOT_UTF8, "localhost"),
    "prometheus_port": ("65536", "8000"),
    "prometheus_scope_labels": ("1", "False"),
    "prometheus_web_config": (NOT_UTF8, "nothing"),
    "prometheus_bearer_token_file": (NOT_UTF8, "nothing"),
    "metric_export_interval_s": ("soon", "60.0"),
    "metric_export_timeout_s": ("-1", "30.0"),
    "otlp_protocol": ("http/json", "http/protobuf"),
    "otlp_endpoint": ("ftp://collector", "nothing"),
    "otlp_headers": ("Bearer s3cret", "nothing"),
    "otlp_timeout_s": ("0", "10.0"),
    "otlp_compression": ("brotli", "none"),
    "otlp_insecure": ("1", "nothing"),
    "otlp_certificate": (NOT_UTF8, "nothing"),
    "otlp_client_key": (NOT_UTF8, "nothing"),
    "otlp_client_certificate": (NOT_UTF8, "nothing"),
    "traces_exporters": ("zipkin", "none"),
    "traces_sampler": ("jaeger_remote", "parentbased_always_on"),
    "traces_sampler_arg": ("1.5", "1.0"),
    "propagators": ("w3c", "tracecontext,baggage"),
    "trace_relation": ("child", "parent"),
    "exemplar_filter": ("sometimes", "trace_based"),
    "message_size_sample_every": ("-3", "100"),
    "departed_agents_linger_s": ("nan", "300.0"),
    "max_agents": ("many", "1000"),
    "agent_grouping": ("kind", "id"),
    "agents_include": (NOT_UTF8, "nothing"),
    "agents_exclude": (NOT_UTF8, "nothing"),
    "modules": ("meeting-core", "nothing"),
    "otlp_metrics_endpoint": ("http://", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "otlp_traces_endpoint": ("grpc://collector", "OTEL_EXPORTER_OTLP_ENDPOINT"),
}

# bad values given in Python
BAD_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "sdk_disabled": (None, "true", 1),
    "service_name": ("", 5, NOT_UTF8),
    "resource_attributes": (None, "a=b", {"a": 1}, {"": "b"}, {"a": NOT_UTF8}),
    "metrics_exporters": (None, (), ["otlp"], "otlp", ("jaeger",), ("none", "otlp"), ("otlp", "otlp"), ([],)),
    "prometheus_host": (None, "", 5),
    "prometheus_port": (None, "8000", -1, 65536, True, 80.0),
    "prometheus_scope_labels": (None, "true", 1),
    "prometheus_web_config": ("", 5, b"web.yml", NOT_UTF8),
    "prometheus_bearer_token_file": ("", 5, b"token", NOT_UTF8),
    "metric_export_interval_s": (None, "1", 0, -1, 0.009, float("nan"), float("inf"), True, 10**400),
    "metric_export_timeout_s": (None, 0, 0.0009),
    "otlp_protocol": (None, "http/json", "GRPC", 1),
    "otlp_endpoint": ("", "ftp://collector", "http://", "http://a b", "http://host:0", "http://host:99999", 4318),
    "otlp_headers": (None, "a=b", {"a": 1}, {"a b": "c"}, {"": "b"}, {"a": "b\nc"}, {"a": "é"}),
    "otlp_timeout_s": (None, 0, 0.0009, "10"),
    "otlp_compression": (None, "brotli"),
    "otlp_insecure": ("true", 1),
    "otlp_certificate": ("", b"ca.pem"),
    "otlp_client_key": ("",),
    "otlp_client_certificate": ("",),
    "traces_exporters": (None, (), ["otlp"], "otlp", ("prometheus",), ("none", "otlp"), ("otlp", "otlp")),
    "traces_sampler": (None, "", "jaeger_remote", "ALWAYS_ON", 1),
    "traces_sampler_arg": (None, "0.5", -0.1, 1.1, float("nan"), float("inf"), True),
    "propagators": (None, (), ["b3"], "b3", ("w3c",), ("none", "b3"), ("b3", "b3")),
    "trace_relation": (None, "child", "LINK", True),
    "exemplar_filter": (None, "sometimes"),
    "message_size_sample_every": (None, -1, 1.5, "100", True, 10**10),
    "departed_agents_linger_s": (None, 0, -5),
    "max_agents": (None, -1, 1.5, "1", True),
    "agent_grouping": (None, "", "kind"),
    "agents_include": (None, "a*", ["a*"], ("",), (5,), (NOT_UTF8,)),
    "agents_exclude": (None, "a*", ["a*"], ("",), (5,), (NOT_UTF8,)),
    "modules": (None, "meeting", ["meeting"], ("a b",), ("",), (5,)),
    "otlp_metrics_endpoint": ("", "http://"),
    "otlp_traces_endpoint": ("", "http://", "grpc://collector"),
}

for _signal in ("metrics", "traces"):
    for _name in OF_OTLP:
        GOOD.setdefault(f"otlp_{_signal}_{_name}", GOOD[f"otlp_{_name}"])
        _general = "OTEL_EXPORTER_OTLP_" + _name.removesuffix("_s").upper()
        BAD.setdefault(f"otlp_{_signal}_{_name}", (BAD[f"otlp_{_name}"][0], _general))
        _values = tuple(value for value in BAD_ARGUMENTS[f"otlp_{_name}"] if value is not None)  # which is the default
        BAD_ARGUMENTS.setdefault(f"otlp_{_signal}_{_name}", _values)

each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)


# -- the table -----------------------------------------------------------------------------------------


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    assert [setting.field for setting in SETTINGS] == [field.name for field in dataclasses.fields(Config)]


def test_no_variable_fills_two_fields() -> None:
    variables = [variable for setting in SETTINGS for variable in setting.variables]
    assert sorted(set(variables)) == sorted(variables)


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert dataclasses.asdict(Config()) == DEFAULT_VALUES
    assert dict(DEFAULTS) == DEFAULT_VALUES


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Config.from_env({}) == Config()


@each_setting
def test_every_row_has_a_sentence_for_the_documentation(setting: Setting) -> None:
    assert setting.description.endswith(".")
    assert setting.variables
    for variable in setting.variables:
        assert re.fullmatch(r"(OTEL|AMPTALK_OTEL)_[A-Z0-9_]+", variable)


# -- argument > environment > default ------------------------------------------------------------------


@each_setting
def test_a_variable_goes_before_the_default(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    text, value = GOOD[setting.field]
    assert value != DEFAULT_VALUES[setting.field]
    for variable in setting.variables:
        config = Config.from_env({variable: text})
        assert dataclasses.asdict(config) == {**DEFAULT_VALUES, setting.field: value}
    assert caplog.messages == []


@each_setting
def test_an_argument_goes_before_the_variable_which_is_not_even_read(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    _, value = GOOD[setting.field]
    environ = dict.fromkeys(setting.variables, BAD[setting.field][0])
    config = Config.from_env(environ, strict=True, **{setting.field: value})
    assert getattr(config, setting.field) == value
    assert caplog.messages == []


def test_every_row_has_one_variable() -> None:
    assert [setting.field for setting in SETTINGS if len(setting.variables) != 1] == []


def test_the_rows_of_the_otlp_exporters_are_there_for_all_signals_and_for_each() -> None:
    found = {setting.field: setting.variables[0] for setting in SETTINGS if setting.field.startswith("otlp_")}
    assert found == {
        **{f"otlp_{name}": f"OTEL_EXPORTER_OTLP_{variable}" for name, variable in OF_OTLP.items()},
        **{f"otlp_metrics_{name}": f"OTEL_EXPORTER_OTLP_METRICS_{variable}" for name, variable in OF_OTLP.items()},
        **{f"otlp_traces_{name}": f"OTEL_EXPORTER_OTLP_TRACES_{variable}" for name, variable in OF_OTLP.items()},
    }


@pytest.mark.parametrize("name", OF_OTLP)
def test_a_row_for_one_signal_takes_what_the_one_for_all_takes_and_its_default_is_not_set(name: str) -> None:
    rows = {setting.field: setting for setting in SETTINGS}
    general = rows[f"otlp_{name}"]
    for signal in ("metrics", "traces"):
        row = rows[f"otlp_{signal}_{name}"]
        assert (row.parse, row.secret) == (general.parse, general.secret)
        assert DEFAULT_VALUES[row.field] is None
        assert f"`{general.field}`" in row.description
        assert signal in row.description


@each_setting
@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_not_set(setting: Setting, empty: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Config.from_env(dict.fromkeys(setting.variables, empty), strict=True) == Config()
    assert caplog.messages == []


def test_the_process_environment_is_the_default_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "9999")
    assert Config.from_env().prometheus_port == 9999


def test_a_config_made_in_python_reads_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "9999")
    assert Config().prometheus_port == 8000


def test_a_copy_with_changes_leaves_the_original_as_it_was() -> None:
    config = Config(service_name="a")
    assert config.with_changes(prometheus_port=0) == Config(service_name="a", prometheus_port=0)
    assert config == Config(service_name="a")


@pytest.mark.parametrize("name", ["agents_include", "agents_exclude", "modules", "metrics_exporters"])
def test_what_may_be_more_than_one_is_no_text(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}='x\*': must be a tuple of "):
        Config(**{name: "x*"})  # type: ignore[arg-type]


def test_a_copy_with_a_bad_change_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prometheus_port=70000: must be a port number"):
        Config().with_changes(prometheus_port=70000)


# -- bad values ----------------------------------------------------------------------------------------


def test_every_setting_has_its_examples_here() -> None:
    fields = {setting.field for setting in SETTINGS}
    assert (set(GOOD), set(BAD), set(BAD_ARGUMENTS)) == (fields, fields, fields)


@each_setting
def test_a_bad_variable_costs_one_warning_naming_variable_value_and_what_is_used(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    text, used = BAD[setting.field]
    for variable in setting.variables:
        caplog.clear()
        config = Config.from_env({variable: text})
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("amptalk_otel", logging.WARNING)
        shown = "(hidden)" if setting.secret else repr(text)
        message = record.getMessage()
        assert message.startswith(f"{variable}={shown}: ")
        assert message.endswith(f"; using {used} instead")
        assert "\n" not in message
        if setting.field != "metrics_exporters":  # of which one member is right
            assert config == Config()


@each_setting
def test_a_bad_variable_is_an_error_when_strict(setting: Setting) -> None:
    text, _ = BAD[setting.field]
    for variable in setting.variables:
        with pytest.raises(ValueError, match=f"^{variable}=") as caught:
            Config.from_env({variable: text}, strict=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{index}")
        for field, values in BAD_ARGUMENTS.items()
        for index, value in enumerate(values)
    ],
)
def test_a_bad_argument_is_an_error_naming_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}=.*: ") as caught:
        Config(**{field: value})
    with pytest.raises(ValueError, match=f"^{field}="):
        Config.from_env({}, **{field: value})
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("field", [field for field, value in DEFAULT_VALUES.items() if value is None])
def test_none_means_not_set_where_that_is_the_default(field: str) -> None:
    nothing: dict[str, Any] = {field: None}
    assert Config(**nothing) == Config()


def test_the_usable_members_of_a_list_of_exporters_are_used(caplog: pytest.LogCaptureFixture) -> None:
    config = Config.from_env({"OTEL_METRICS_EXPORTER": "otlp,jaeger,console"})
    assert config.metrics_exporters == ("otlp", "console")
    assert caplog.messages == [
        "OTEL_METRICS_EXPORTER='otlp,jaeger,console': must be some of prometheus, otlp, console, none; "
        "using otlp,console instead"
    ]


def test_none_beside_an_exporter_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert Config.from_env({"OTEL_METRICS_EXPORTER": "none,console"}).metrics_exporters == ("console",)
    assert caplog.messages == ["OTEL_METRICS_EXPORTER='none,console': none goes alone; using console instead"]


@pytest.mark.parametrize(
    ("text", "used"),
    [("jaeger,xray", ("jaeger", "xray")), ("none", ("none",)), ("tracecontext,tracecontext", ("tracecontext",))],
)
def test_propagators_are_named_once_each(text: str, used: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    assert Config.from_env({"OTEL_PROPAGATORS": text}).propagators == used
    assert caplog.messages == []


def test_the_usable_propagators_are_used(caplog: pytest.LogCaptureFixture) -> None:
    assert Config.from_env({"OTEL_PROPAGATORS": "w3c,baggage"}).propagators == ("baggage",)
    assert caplog.messages == [
        "OTEL_PROPAGATORS='w3c,baggage': must be some of tracecontext, baggage, b3, b3multi, jaeger, xray, ottrace, "
        "none; using baggage instead"
    ]


@pytest.mark.parametrize(("text", "used"), [("0", 0.0), ("1", 1.0), ("1e-3", 0.001), (" .5 ", 0.5)])
def test_a_share_of_traces_is_a_number_from_0_to_1(text: str, used: float) -> None:
    assert Config.from_env({"OTEL_TRACES_SAMPLER_ARG": text}, strict=True).traces_sampler_arg == used


def test_several_bad_variables_cost_one_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    config = Config.from_env(
        {"OTEL_EXPORTER_PROMETHEUS_PORT": "x", "OTEL_SDK_DISABLED": "y", "OTEL_SERVICE_NAME": "bot"}
    )
    assert config == Config(service_name="bot")
    assert sorted(message.partition("=")[0] for message in caplog.messages) == [
        "OTEL_EXPORTER_PROMETHEUS_PORT",
        "OTEL_SDK_DISABLED",
    ]


# -- endpoints without a scheme ------------------------------------------------------------------------

NEEDED = "must begin with http:// or https:// where the protocol is http/protobuf"
OTLP = "OTEL_EXPORTER_OTLP_"


@pytest.mark.parametrize("exporter", ["OTEL_METRICS_EXPORTER", "OTEL_TRACES_EXPORTER"])
def test_an_endpoint_to_push_to_over_http_has_a_scheme(exporter: str, caplog: pytest.LogCaptureFixture) -> None:
    environ = {exporter: "otlp", f"{OTLP}ENDPOINT": "localhost:4318"}
    assert Config.from_env(environ).otlp_endpoint is None
    assert caplog.messages == [f"{OTLP}ENDPOINT='localhost:4318': {NEEDED}; using nothing instead"]
    with pytest.raises(ValueError, match=f"^{OTLP}ENDPOINT='localhost:4318': {NEEDED}$"):
        Config.from_env(environ, strict=True)
    with pytest.raises(ValueError, match=f"^otlp_endpoint='//localhost:4318': {NEEDED}$"):
        Config.from_env({exporter: "otlp"}, otlp_endpoint="//localhost:4318")
    with pytest.raises(ValueError, match=r"^otlp_endpoint='localhost:4318': "):
        Config(otlp_endpoint="localhost:4318").with_changes(metrics_exporters=("otlp",))


@pytest.mark.parametrize(
    "environ",
    [
        {f"{OTLP}PROTOCOL": "grpc", "OTEL_METRICS_EXPORTER": "otlp"},
        {f"{OTLP}METRICS_PROTOCOL": "grpc", "OTEL_METRICS_EXPORTER": "otlp"},  # and nothing is pushed over HTTP
        {f"{OTLP}METRICS_ENDPOINT": "HTTPS://collector", "OTEL_METRICS_EXPORTER": "otlp"},
        {},
    ],
)
def test_no_other_endpoint_needs_one(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    config = Config.from_env({f"{OTLP}ENDPOINT": "localhost:4317", **environ})
    assert (config.otlp_endpoint, caplog.messages) == ("localhost:4317", [])


def test_what_goes_in_the_place_of_an_endpoint_without_a_scheme_needs_one_too(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"OTEL_METRICS_EXPORTER": "otlp", f"{OTLP}METRICS_ENDPOINT": "a:1", f"{OTLP}ENDPOINT": "http://b"}
    config = Config.from_env(environ)
    assert (config.otlp_metrics_endpoint, config.otlp_endpoint) == (None, "http://b")
    assert caplog.messages == [f"{OTLP}METRICS_ENDPOINT='a:1': {NEEDED}; using {OTLP}ENDPOINT instead"]
    config = Config.from_env({**environ, f"{OTLP}ENDPOINT": "b:1"})
    assert (config.otlp_metrics_endpoint, config.otlp_endpoint) == (None, None)


# -- secrets -------------------------------------------------------------------------------------------


def test_headers_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(otlp_headers={"authorization": "Bearer s3cret"})
    assert "s3cret" not in repr(config)
    assert "s3cret" not in str(config)
    assert "authorization" not in repr(config)
    assert ", otlp_headers=(hidden), " in repr(config)
    assert ", otlp_headers={}, " in repr(Config())
    with pytest.raises(ValueError, match="otlp_headers") as caught:
        Config(otlp_headers={"authorization": b"s3cret"})  # type: ignore[dict-item]
    assert str(caught.value) == "otlp_headers=(hidden): must be a mapping from texts to texts"
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        Config.from_env({"OTEL_EXPORTER_OTLP_HEADERS": "s3cret"}, strict=True)
    assert str(caught.value) == ("OTEL_EXPORTER_OTLP_HEADERS=(hidden): must be key=value pairs separated by commas")
    Config.from_env({"OTEL_EXPORTER_OTLP_HEADERS": "s3cret"})
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_HEADERS=(hidden): must be key=value pairs separated by commas; using nothing instead"
    ]


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_the_headers_of_one_signal_are_shown_nowhere(signal: str, caplog: pytest.LogCaptureFixture) -> None:
    field, variable = f"otlp_{signal}_headers", f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS"
    config = Config.from_env({variable: "authorization=s3cret"})
    assert getattr(config, field) == {"authorization": "s3cret"}
    assert "s3cret" not in repr(config)
    Config.from_env({variable: "s3cret"})
    assert caplog.messages == [
        f"{variable}=(hidden): must be key=value pairs separated by commas; using OTEL_EXPORTER_OTLP_HEADERS instead"
    ]


@pytest.mark.parametrize("url", ["http://bot:s3cret@host:4318/x", "bot:s3cret@host:4317", "http://bot:s3/cret@x@host"])
def test_a_password_in_an_endpoint_is_not_shown(url: str) -> None:
    for shown in (_repr_or_error(url), _repr_or_error(url + ":99999"), _repr_or_error(url + " ")):
        assert "cret" not in shown
        assert "(hidden)@" in shown


def test_an_endpoint_without_a_password_is_shown() -> None:
    assert "otlp_endpoint='http://host:4318'" in repr(Config(otlp_endpoint="http://host:4318"))


def _repr_or_error(endpoint: str) -> str:
    try:
        return repr(Config(otlp_endpoint=endpoint))
    except ValueError as error:
        return str(error)


def test_a_password_in_a_bad_endpoint_variable_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    Config.from_env({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://bot:s3cret@host:99999"})
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_ENDPOINT='http://(hidden)@host:99999': must be a URL such as http://localhost:4318; "
        "using nothing instead"
    ]


def test_a_query_of_an_endpoint_is_not_shown() -> None:
    assert "otlp_endpoint='https://host/v1?(hidden)'" in repr(Config(otlp_endpoint="https://host/v1?api_key=s3cret"))


def test_a_token_that_is_given_in_place_of_its_file_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(prometheus_bearer_token_file="s3cret")
    assert ", prometheus_bearer_token_file=(hidden), " in repr(config)
    assert ", prometheus_bearer_token_file=None, " in repr(Config())
    Config.from_env({"AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE": f"s3cret{NOT_UTF8}"})
    assert caplog.messages == [
        "AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE=(hidden): must be UTF-8; using nothing instead"
    ]
    assert "s3cret" not in repr(config)


def test_the_repr_shows_everything_else() -> None:
    shown = repr(Config(service_name="bot"))
    assert shown.startswith("Config(sdk_disabled=False, service_name='bot', resource_attributes={}, ")
    for setting in SETTINGS:
        assert f" {setting.field}=" in shown.replace("(", " ")


def test_headers_and_the_tokens_file_are_the_only_rows_marked_secret() -> None:
    secret = [setting.field for setting in SETTINGS if setting.secret]
    assert secret == ["prometheus_bearer_token_file", "otlp_headers", "otlp_metrics_headers", "otlp_traces_headers"]


# -- import --------------------------------------------------------------------------------------------

_IMPORT_EVERYTHING = """
import importlib, os, pkgutil, sys

class Recording(dict):
    asked = set()
    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)
    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)
    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

class Poisoned(dict):
    def refuse(self, *_arguments):
        raise AssertionError("the environment was read or written")
    __getitem__ = get = __contains__ = __iter__ = keys = items = values = copy = refuse
    __setitem__ = setdefault = update = pop = refuse

def import_everything():
    import amptalk_otel
    names = ["amptalk_otel"]
    for module in pkgutil.walk_packages(amptalk_otel.__path__, "amptalk_otel."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            assert "pip install" in str(error), error  # an extra that is not here
        else:
            names.append(module.name)
    return names

os.environ = Recording(os.environ)
names = import_everything()
assert len(names) > 20, names
from amptalk_otel.config import SETTINGS
table = {variable for setting in SETTINGS for variable in setting.variables}
# opentelemetry.propagate, which opentelemetry.instrumentation imports, reads it for the global propagator; not ours.
read = (table & Recording.asked) - {"OTEL_PROPAGATORS"}
assert "OTEL_PYTHON_CONTEXT" in Recording.asked  # which the API reads, so this does record
assert not read, sorted(read)

for name in names:
    del sys.modules[name]
os.environ = Poisoned()
assert import_everything() == names
try:
    os.environ.get("HOME")
except AssertionError:
    print("nothing was read")
"""


def test_nothing_is_read_at_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EVERYTHING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("nothing was read\n", "", 0)
