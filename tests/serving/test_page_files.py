"""The files of the page: ours are asked for again, the charts' library is sent once and packed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from config import Paths
from serving.page_files import WEB, add_page_files, plotly_file
from tests.serving.served import Served

VENDOR = "/vendor/plotly.min.js"
COLUMNS = 120


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Return a folder with a page and, beside it, what nobody shall see."""
    web = tmp_path / "web"
    (web / "panels").mkdir(parents=True)
    (web / "index.html").write_text("<!doctype html><title>page</title>")
    (web / "panels" / "loss.js").write_text("export const loss = 1;")
    (tmp_path / "secret.txt").write_text("secret")
    (web / "link.js").symlink_to(tmp_path / "secret.txt")
    return web


@pytest.fixture
def client(web: Path) -> TestClient:
    app = FastAPI()
    add_page_files(app, web)
    return TestClient(app)


def test_the_page_and_its_modules_are_served_and_asked_for_again_each_time(client: TestClient) -> None:
    page, module = client.get("/"), client.get("/web/panels/loss.js")
    assert page.text.startswith("<!doctype html>")
    assert module.headers["content-type"].startswith("text/javascript")
    assert page.headers["cache-control"] == module.headers["cache-control"] == "no-cache"
    again = client.get("/web/panels/loss.js", headers={"if-none-match": module.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/web/link.js", "/web/%2e%2e/secret.txt", "/web/panels", "/web/", "/web/none.js"]
)
def test_what_is_no_file_of_the_page_is_not_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_an_installation_without_a_page_says_where_the_api_is(tmp_path: Path) -> None:
    app = FastAPI()
    add_page_files(app, tmp_path / "nowhere")
    answer = TestClient(app).get("/")
    assert (answer.status_code, "/docs" in answer.json()["detail"]) == (404, True)


def test_the_library_is_the_installed_one_packed_and_cached(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        packed = client.get(VENDOR, accept_encoding="gzip, br")
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plotly_file().read_bytes()
        assert len(packed.body) < len(plotly_file().read_bytes()) / 2
        assert "max-age=" in packed.headers["cache-control"]
        known = client.get(VENDOR, if_none_match=packed.headers["etag"])
        assert (known.status, known.body) == (304, b"")
        assert client.get(VENDOR).body == plotly_file().read_bytes()


def test_no_line_of_the_page_is_wider_than_a_screen() -> None:
    wide = [
        f"{path.name}:{number} has {len(line)} columns"
        for path in sorted(WEB.glob("*.js"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > COLUMNS
    ]
    assert wide == []
