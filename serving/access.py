"""Who may ask a server of ours, and how: address, token, host name, origin, size, and headers of each answer.

Both servers stand behind `Access`. Rules are made before anything is bound; a configuration that would show
the machine to others without a token is refused, never softened.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
from starlette.exceptions import HTTPException

from config import ServingConfig
from errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CREDENTIAL = "trainbox-token"
"""Name of the systemd credential (``LoadCredential=trainbox-token:/etc/trainbox.token``)."""
COOKIE = "trainbox_token"
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""What a bearer token may consist of (RFC 6750), at a length that nobody guesses."""
COOKIE_SECONDS = 30 * 86_400


def content_policy(style: str = "'self'") -> str:
    """Return what a page may load: files of ours only, and styles from where `style` says."""
    return (
        f"default-src 'none'; script-src 'self'; style-src {style}; "
        "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": content_policy(),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:]*)(?::\d+)?")
_WELCOME = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>trainbox</title>
<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Go on</a></p></html>"""

ErrorShape = Callable[[int, str], Any]
"""Makes the JSON body of a refusal of its status and its sentence."""


@dataclass(frozen=True)
class AccessRules:
    """What a server asks of a request before it answers."""

    token: str | None
    """What callers must know; None: this machine's callers need nothing."""
    max_body_bytes: int


def access_rules(config: ServingConfig, base: Path, environment: Mapping[str, str]) -> AccessRules:
    """Return the rules that follow from the configuration.

    Raises ConfigError where `serving.host` is no loopback address and there is no token, and where the
    token cannot be read, could be read by others, or is none.
    """
    token = read_token(config, base, environment)
    if token is None and not is_loopback(config.host):
        raise ConfigError(
            f"serving.host: found {config.host!r}, which others can reach, and no token; set "
            "serving.token_file to a file that holds one (openssl rand -hex 32 > token; chmod 600 token), "
            f"give the service a credential {CREDENTIAL}, or use 127.0.0.1"
        )
    return AccessRules(token, config.max_body_bytes)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address; a name other than localhost may be anyone's."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(config: ServingConfig, base: Path, environment: Mapping[str, str]) -> str | None:
    """Return the token of ``serving.token_file``, else of the systemd credential, else None."""
    if config.token_file:
        path = base / Path(config.token_file).expanduser()
        _refuse_readable_by_others(path)
        return _token_in(path)
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if folder is None or not (path := Path(folder, CREDENTIAL)).is_file():
        return None
    return _token_in(path)  # who may read a credential is systemd's; its group bits mask an access list


def _refuse_readable_by_others(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"serving.token_file: cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"serving.token_file: {path} has mode {mode:04o}, expected one that only its owner can read; "
            f"run: chmod 600 {path}"
        )


def _token_in(path: Path) -> str:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the token: {error}") from error
    token = lines[0].strip() if lines else ""
    if TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"{path}: its first line is no token; expected 16 or more letters, digits "
            "and -._~+/, for instance from: openssl rand -hex 32"
        )
    return token


def _plain_error(status: int, detail: str) -> dict[str, str]:
    return {"detail": detail}


class Access:
    """Lets a request through to `app` if the rules allow it; every answer gets the security headers that it
    has not set itself.

    With a token, opening ``/?token=…`` once sets a cookie, so that a browser and its EventSource work. The
    answer to that is a page that leads on, not a redirect: a strict cookie is not sent along with those
    when the address was followed from elsewhere.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, error_shape: ErrorShape = _plain_error) -> None:
        self._app = app
        self._rules = rules
        self._error_shape = error_shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_security_headers(send)
        offered = _token_in_query(scope) if self._rules.token is not None else None
        if offered is not None and self._is_right(offered):
            cookie = f"{COOKIE}={offered}; HttpOnly; SameSite=Strict; Path=/; Max-Age={COOKIE_SECONDS}"
            await _answer(send, 200, _WELCOME, {"content-type": "text/html", "set-cookie": cookie})
            return
        refusal = self._refusal(headers)
        if refusal is None:
            await self._app(scope, self._limited(receive), send)
            return
        status, detail = refusal
        more = {"www-authenticate": "Bearer"} if status == 401 else {}
        body = orjson.dumps(self._error_shape(status, detail))
        await _answer(send, status, body, {"content-type": "application/json", **more})

    def _refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return why a request is not answered; None when it may be."""
        host = headers.get("host", "")
        if self._rules.token is None and not _is_name_of_this_machine(host):
            # A page elsewhere may have its own name resolved to this machine to read what is shown here.
            return 421, f"found the host {host[:80]!r}, expected localhost, 127.0.0.1 or [::1]"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "pages of other sites are not answered"
        if self._rules.token is not None and not self._is_right(_token_of(headers)):
            return 401, "a token is needed: Authorization: Bearer TOKEN, or open /?token=TOKEN once"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self._rules.max_body_bytes:
            return 413, self._too_long
        return None

    @property
    def _too_long(self) -> str:
        return f"the request is longer than {self._rules.max_body_bytes} bytes (serving.max_body_bytes)"

    def _is_right(self, offered: str) -> bool:
        token = self._rules.token
        return token is not None and hmac.compare_digest(offered.encode("utf-8", "replace"), token.encode())

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` that refuses a body whose length nobody told once it grows too long."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._rules.max_body_bytes:
                raise HTTPException(413, self._too_long)
            return message

        return limited


def _is_name_of_this_machine(host: str) -> bool:
    match = _HOST.fullmatch(host.lower())
    return match is not None and is_loopback(match[1])


def _token_of(headers: Mapping[str, str]) -> str:
    """Return the token a request bears, empty where it has none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def _token_in_query(scope: Scope) -> str | None:
    if scope["method"] != "GET" or scope["path"] != "/":
        return None
    parameters = scope["query_string"].decode("latin-1").split("&")
    tokens = [
        unquote(value) for name, _, value in (one.partition("=") for one in parameters) if name == "token"
    ]
    return tokens[0] if tokens else None


def _with_security_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            due = {**SECURITY_HEADERS, "cache-control": "no-store"}
            more = [(name.encode(), due[name].encode()) for name in due if name.encode() not in present]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
