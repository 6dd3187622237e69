"""Who may ask: addresses, tokens, host names, origins and sizes, tried on a real port."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from config import Paths, ServingConfig, load_config
from errors import ConfigError
from serving.access import (
    COOKIE,
    SECURITY_HEADERS,
    Access,
    AccessRules,
    access_rules,
    is_loopback,
    read_token,
)
from tests.serving.served import Client, Served

TOKEN = "0123456789abcdef-._~+/"


def token_file(folder: Path, text: str = TOKEN, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_addresses_that_only_this_machine_reaches_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "localhost.example.org"])
def test_addresses_that_others_may_reach_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.config_key("serving.host")
def test_an_address_that_others_reach_is_refused_without_a_token(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["serving.host=0.0.0.0"]).serving
    with pytest.raises(ConfigError, match=r"serving\.host: found '0\.0\.0\.0'.*serving\.token_file"):
        access_rules(config, tmp_path, {})
    assert access_rules(ServingConfig(), tmp_path, {}).token is None


@pytest.mark.config_key("serving.token_file")
def test_a_token_opens_an_address_that_others_reach(tmp_path: Path) -> None:
    token_file(tmp_path)
    config = load_config(tmp_path, ["serving.host=0.0.0.0", "serving.token_file=token"]).serving
    assert access_rules(config, tmp_path, {}).token == TOKEN


def test_a_credential_of_systemd_is_a_token_whatever_its_group_bits(tmp_path: Path) -> None:
    (tmp_path / "trainbox-token").write_text(TOKEN)
    (tmp_path / "trainbox-token").chmod(0o440)
    assert read_token(ServingConfig(), tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == TOKEN
    assert read_token(ServingConfig(), tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_token_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*chmod 600 {path}"):
        read_token(ServingConfig(token_file="token"), tmp_path, {})


@pytest.mark.parametrize("text", ["", "short", "with a space in the middle", "ünïcode-is-no-token"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    token_file(tmp_path, text)
    with pytest.raises(ConfigError, match="token"):
        read_token(ServingConfig(token_file="token"), tmp_path, {})


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serving\.token_file: cannot read .*nowhere"):
        read_token(ServingConfig(token_file="nowhere"), tmp_path, {})


def test_with_a_token_nothing_is_answered_without_it(tmp_path: Path) -> None:
    token_file(tmp_path)
    with Served(Paths(tmp_path), "serving.token_file=token") as client:
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/api/versions", "/api/events", "/nothing"):
            answer = client.get(path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "token" in answer.json()["detail"]
        wrong = ("Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}")
        assert {client.get("/api/versions", authorization=text).status for text in wrong} == {401}
        assert client.get("/api/versions", authorization=f"Bearer {TOKEN}").status == 200
        assert client.get("/api/versions", host="trainbox.lan", authorization=f"bearer {TOKEN}").status == 200


def test_opening_the_page_with_the_token_once_lets_a_browser_in(tmp_path: Path) -> None:
    token_file(tmp_path)
    with Served(Paths(tmp_path), "serving.token_file=token") as client:
        welcome = client.get(f"/?token={TOKEN}")
        cookie = welcome.headers["set-cookie"]
        assert welcome.status == 200 and TOKEN not in welcome.body.decode()
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert client.get("/api/versions", cookie=cookie.partition(";")[0]).status == 200
        assert client.get("/api/versions", cookie=f"{COOKIE}=wrong").status == 401
        assert client.get("/?token=wrong").status == 401
        assert client.get(f"/api/versions?token={TOKEN}").status == 401


def served_hosts(client: Client) -> list[str]:
    return [f"{name}:{client.port}" for name in ("localhost", "127.0.0.1", "[::1]")]


def test_only_names_of_this_machine_are_answered_where_no_token_is_asked_for(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        assert {client.get("/api/versions", host=host).status for host in served_hosts(client)} == {200}
        for host in (
            "evil.example",
            f"evil.example:{client.port}",
            "localhost.evil.example",
            "127.0.0.1.evil",
            "",
        ):
            assert client.get("/api/versions", host=host).status == 421


def test_pages_of_other_sites_are_not_answered(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        own = f"http://127.0.0.1:{client.port}"
        assert client.get("/api/versions", origin=own).status == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            answer = client.get("/api/versions", origin=origin)
            assert answer.status == 403
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.config_key("serving.max_body_bytes")
def test_a_body_above_the_limit_is_refused(tmp_path: Path) -> None:
    with Served(Paths(tmp_path), "serving.max_body_bytes=1000") as client:
        assert client.ask("GET", "/api/versions", b"x" * 1000).status == 200
        refused = client.ask("GET", "/api/versions", b"x" * 1001)
        assert refused.status == 413
        assert "serving.max_body_bytes" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/", "/api/versions", "/nothing", "/api/training/jobs/x", "/metrics"])
def test_every_answer_bears_the_security_headers(tmp_path: Path, path: str) -> None:
    with Served(Paths(tmp_path)) as client:
        headers = client.get(path).headers
    assert {name: headers.get(name) for name in SECURITY_HEADERS} == dict(SECURITY_HEADERS)
    assert "unsafe" not in headers["content-security-policy"]
    assert "style-src 'self';" in headers["content-security-policy"]
    assert "server" not in headers


def test_only_the_api_page_may_bring_a_style_along_and_only_its_own(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        answer = client.get("/docs")
    style = answer.body.partition(b"<style>")[2].partition(b"</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    usual = SECURITY_HEADERS["content-security-policy"]
    expected = usual.replace("style-src 'self'", f"style-src 'sha256-{digest}'")
    assert answer.headers["content-security-policy"] == expected != usual


def test_no_route_changes_anything(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        document = client.get("/openapi.json").json()
        assert {method for operations in document["paths"].values() for method in operations} == {"get"}
        assert {client.ask(method, "/api/versions").status for method in ("POST", "PUT", "DELETE")} == {405}


@pytest.mark.parametrize(
    "path",
    [
        "/web/../access.py",
        "/web/%2e%2e/access.py",
        "/web/..%2faccess.py",
        "/web//etc/passwd",
        "/api/training/jobs/..%2f..%2f..%2fetc",
        "/api/training/checkpoints/000001-00000000%2f..%2f..",
        "/api/training/jobs/../../etc/metrics",
        "/status/../../etc/passwd",
    ],
)
def test_no_path_leads_out_of_its_folder(tmp_path: Path, path: str) -> None:
    with Served(Paths(tmp_path)) as client:
        answer = client.get(path)
    assert answer.status in (404, 422)
    assert b"root:" not in answer.body and b"import" not in answer.body


def test_a_daemon_that_others_would_reach_without_a_token_does_not_start(tmp_path: Path) -> None:
    import daemon

    arguments = ["--base", str(tmp_path), "--until-idle", "--set", "serving.host=0.0.0.0"]
    assert daemon.main([*arguments, "--set", "serving.monitor=true"]) == 2
    assert os.listdir(tmp_path) == []


def test_a_body_whose_length_nobody_told_is_cut_off_at_the_limit() -> None:
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    client = TestClient(Access(app, AccessRules(None, 10)), base_url="http://localhost")
    assert client.post("/", content=iter([b"12345", b"67890"])).text == "1234567890"
    assert client.post("/", content=iter([b"12345", b"678901"])).status_code == 413


def test_a_refusal_takes_the_shape_that_a_server_gives_its_errors() -> None:
    access = Access(
        Starlette(),
        AccessRules(TOKEN, 10),
        error_shape=lambda status, detail: {"error": {"code": status, "message": detail}},
    )
    refused = TestClient(access).get("/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, 401)
