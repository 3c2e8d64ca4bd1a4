"""A real Prometheus scrapes a protected page, or is refused; and promtool agrees on what a web configuration is."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from cryptography import x509

from amptalk_otel import Config, instrument_agent
from amptalk_otel._protection import UnusableError
from amptalk_otel._web_config import read_web_config
from tests.certificates import Authority
from tests.integration.servers import Prometheus, run_program
from tests.support import Scripted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "web-config.yml"
PASSWORD, TOKEN = "wonderland", "s3cret.token-0123456789"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(8)).decode()
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
VERIFIED = (
    TLS
    + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: authority.crt\n"
    + "  client_allowed_sans: [prometheus.example.com]\n"
)
USERS = f"basic_auth_users:\n  alice: {HASH}\n"


class ManyWays(Prometheus):
    """Scrapes one page by several jobs, each with its own way to be let in."""

    def __init__(self, jobs: dict[str, dict[str, Any]]) -> None:
        super().__init__(scrape_interval_s=0.5)  # which is the longest that a scrape may take
        self._jobs = jobs

    def _command(self) -> list[str]:
        command = super()._command()
        path = self.folder / "prometheus.yml"
        config = json.loads(path.read_text())
        config["scrape_configs"] = [{"job_name": name, **job} for name, job in self._jobs.items()]
        path.write_text(json.dumps(config))
        return command

    def targets(self) -> dict[str, tuple[str, str]]:
        """Health and last error of each job's target."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets", timeout=5) as response:
            found = json.load(response)["data"]["activeTargets"]
        return {target["labels"]["job"]: (target["health"], target["lastError"]) for target in found}


@contextlib.contextmanager
def served(folder: Path, web: str, token: str | None = None) -> Iterator[str]:
    """An instrumented agent whose page is protected; its host and port."""
    (folder / "web.yml").write_text(web)
    files: dict[str, str] = {"prometheus_web_config": str(folder / "web.yml")}
    if token is not None:
        (folder / "token").write_text(token)
        files["prometheus_bearer_token_file"] = str(folder / "token")
    agent = Scripted(agent_id="a", name="A")
    instrumentation = instrument_agent(agent, config=Config(prometheus_port=0).with_changes(**files))
    try:
        assert instrumentation.metrics_url is not None
        yield instrumentation.metrics_url.split("/")[2]
    finally:
        instrumentation.shutdown()


def job(address: str, **how: Any) -> dict[str, Any]:
    return {"scheme": "https", "static_configs": [{"targets": [address]}], **how}


def test_prometheus_scrapes_with_tls_and_a_password_a_token_or_not_at_all(
    require_server: Callable[[str], Path], tmp_path: Path
) -> None:
    require_server("prometheus")
    authority = Authority(tmp_path)
    authority.server()
    (tmp_path / "password").write_text(PASSWORD)
    trust = {"tls_config": {"ca_file": str(authority.file)}}
    right = {"username": "alice", "password_file": str(tmp_path / "password")}
    with served(tmp_path, TLS + USERS, TOKEN) as address:
        jobs = {
            "password": job(address, **trust, basic_auth=right),
            "token": job(address, **trust, authorization={"credentials_file": str(tmp_path / "token")}),
            "http2": job(address, **trust, basic_auth=right, enable_http2=True),
            "nothing": job(address, **trust),
            "wrong-password": job(address, **trust, basic_auth={"username": "alice", "password": "mirror"}),
            "wrong-token": job(address, **trust, authorization={"credentials": TOKEN[:-1]}),
            "no-trust": job(address, basic_auth=right),
            "no-tls": {**job(address, basic_auth=right), "scheme": "http"},
        }
        with ManyWays(jobs) as prometheus:
            prometheus.wait_for("min(count_over_time(up[1m])) > 5 and count(up) == 8")
            up = {sample.labels["job"]: sample.value for sample in prometheus.query("min_over_time(up[1m])")}
            highest = {sample.labels["job"]: sample.value for sample in prometheus.query("max_over_time(up[1m])")}
            agents = {sample.labels["job"] for sample in prometheus.query('amptalk_agent_running{agent_id="a"}')}
            errors = {name: error for name, (_health, error) in prometheus.targets().items()}
    let_in = {"password", "token", "http2"}
    assert {name for name, value in up.items() if value == 1} == let_in  # each scrape of theirs succeeded
    assert {name for name, value in highest.items() if value == 1} == let_in  # and none of the others'
    assert agents == let_in
    for name in ("nothing", "wrong-password", "wrong-token"):
        assert "401 Unauthorized" in errors[name]
    assert "certificate" in errors["no-trust"]
    assert errors["no-tls"]


def test_prometheus_scrapes_with_its_client_certificate(require_server: Callable[[str], Path], tmp_path: Path) -> None:
    require_server("prometheus")
    authority = Authority(tmp_path)
    authority.server()

    def with_certificate(name: str, *sans: x509.GeneralName) -> dict[str, Any]:
        certificate, key = authority.client(name, *sans)
        return {"tls_config": {"ca_file": str(authority.file), "cert_file": str(certificate), "key_file": str(key)}}

    with served(tmp_path, VERIFIED) as address:
        jobs = {
            "right": job(address, **with_certificate("right", x509.DNSName("prometheus.example.com"))),
            "wrong-name": job(address, **with_certificate("wrong", x509.DNSName("other.example.com"))),
            "no-certificate": job(address, tls_config={"ca_file": str(authority.file)}),
        }
        with ManyWays(jobs) as prometheus:
            prometheus.wait_for("min(count_over_time(up[1m])) > 5 and count(up) == 3")
            (right,) = prometheus.query('min_over_time(up{job="right"}[1m])')
            others = prometheus.query('max_over_time(up{job!="right"}[1m])')
            (agent,) = prometheus.query('amptalk_agent_running{agent_id="a"}')
    assert right.value == 1
    assert [sample.value for sample in others] == [0, 0]
    assert agent.labels["job"] == "right"


def test_a_new_certificate_and_password_cost_no_scrape(require_server: Callable[[str], Path], tmp_path: Path) -> None:
    require_server("prometheus")
    authority = Authority(tmp_path)
    authority.server()
    (tmp_path / "password").write_text(PASSWORD)
    trust = {"tls_config": {"ca_file": str(authority.file)}}
    right = {"username": "alice", "password_file": str(tmp_path / "password")}
    with (
        served(tmp_path, TLS + USERS) as address,
        ManyWays({"job": job(address, **trust, basic_auth=right)}) as prometheus,
    ):
        prometheus.wait_for("count_over_time(up[1m]) > 3")
        for number in range(3):
            authority.server(f"server-{number}")
            text = TLS.replace("server.", f"server-{number}.") + USERS
            (tmp_path / "new.yml").write_text(text)
            (tmp_path / "new.yml").replace(tmp_path / "web.yml")
            time.sleep(1)
        (up,) = prometheus.query("min_over_time(up[1m])")
    assert up.value == 1


# -- promtool ------------------------------------------------------------------------------------------


def promtool_says(folder: Path, text: str) -> tuple[int, str]:
    path = folder / "checked.yml"
    path.write_text(text)
    return run_program("promtool", "check", "web-config", path)


def test_the_example_is_a_web_configuration_for_promtool_and_for_us(promtool: Path, tmp_path: Path) -> None:
    Authority(tmp_path).server()
    shutil.copy(EXAMPLE, tmp_path)
    config = read_web_config(tmp_path / EXAMPLE.name)
    assert config.tls is not None
    assert (config.tls.cert_file, list(config.users)) == (tmp_path / "server.crt", [b"prometheus"])
    assert bcrypt.checkpw(b"change-me", config.users[b"prometheus"])
    code, said = run_program("promtool", "check", "web-config", tmp_path / EXAMPLE.name)
    assert (code, "SUCCESS" in said) == (0, True), said


def test_the_example_with_all_that_it_offers_is_one_as_well(promtool: Path, tmp_path: Path) -> None:
    Authority(tmp_path).server()
    text = EXAMPLE.read_text(encoding="utf-8")
    for key in ("client_auth_type", "client_ca_file", "client_allowed_sans"):
        assert f"  # {key}: " in text
        text = text.replace(f"  # {key}: ", f"  {key}: ")
    (tmp_path / "web.yml").write_text(text)
    config = read_web_config(tmp_path / "web.yml")
    assert config.tls is not None
    assert config.tls.client_allowed_sans == ("prometheus.example.com",)
    code, said = promtool_says(tmp_path, text)
    assert code == 0, said


@pytest.mark.parametrize(
    "text",
    [
        TLS,
        VERIFIED,
        USERS,
        TLS + USERS,
        TLS + "  min_version: TLS13\n  max_version: TLS13\n",
        TLS + "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n",
        TLS + "  prefer_server_cipher_suites: false\n",
        TLS + "http_server_config: {http2: false, headers: {X-Frame-Options: sameorigin, X-XSS-Protection: x}}\n",
    ],
)
def test_what_we_take_promtool_takes(promtool: Path, tmp_path: Path, text: str) -> None:
    Authority(tmp_path).server()
    (tmp_path / "web.yml").write_text(text)
    read_web_config(tmp_path / "web.yml")
    code, said = promtool_says(tmp_path, text)
    assert code == 0, said


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_user: {}",
        TLS + "  certfile: x\n",
        TLS + "  min_version: TLS9\n",
        TLS + "  client_auth_type: Always\n",
        TLS + "  client_ca_file: authority.crt\n",
        TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n",
        TLS + "http_server_config: {headers: {Server: x}}\n",
        TLS + "http_server_config: {headers: {X-Frame-Options: x}}\n",
        "basic_auth_users: {alice: wonderland}",
        "tls_server_config: {cert_file: server.crt}",
        USERS + "  alice: x\n",
    ],
)
def test_what_promtool_refuses_we_refuse(promtool: Path, tmp_path: Path, text: str) -> None:
    Authority(tmp_path).server()
    (tmp_path / "web.yml").write_text(text)
    code, said = promtool_says(tmp_path, text)
    assert code != 0, said
    with pytest.raises(UnusableError):
        read_web_config(tmp_path / "web.yml")
