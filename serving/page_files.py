"""The files of the page: our own modules, and plotly.min.js out of the installed plotly package."""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import importlib.util
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).parent / "web"
REVALIDATE = "no-cache"
"""Browsers keep our files but ask each time whether they are still the newest."""
PLOTLY_SECONDS = 7 * 86_400


class WebFiles(StaticFiles):
    """Our modules and style sheets; nothing outside their folder."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = REVALIDATE
        return response


def add_page_files(app: FastAPI, web: Path = WEB) -> None:
    """Serve the page at ``/``, its files below ``/web`` and the charts' library below ``/vendor``."""
    if web.is_dir():
        app.mount("/web", WebFiles(directory=web), name="web")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        index = web / "index.html"
        if not index.is_file():
            raise HTTPException(404, "this installation has no page; the API is described at /docs")
        return FileResponse(index, headers={"cache-control": REVALIDATE})

    @app.get("/vendor/plotly.min.js", include_in_schema=False)
    def plotly(request: Request) -> Response:
        tag = f'"plotly-{importlib.metadata.version("plotly")}"'
        headers = {
            "cache-control": f"private, max-age={PLOTLY_SECONDS}",
            "etag": tag,
            "vary": "accept-encoding",
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return FileResponse(plotly_file(), media_type="text/javascript", headers=headers)
        headers["content-encoding"] = "gzip"
        return Response(_packed_plotly(), media_type="text/javascript", headers=headers)


def plotly_file() -> Path:
    """Return where the installed plotly keeps its JavaScript; plotly itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None and spec.origin is not None, "plotly is among the dependencies"
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


@functools.cache
def _packed_plotly() -> bytes:
    return gzip.compress(plotly_file().read_bytes(), compresslevel=6, mtime=0)
