"""Middleware that lets only requests of the page itself through: same origin, known routes, limited size."""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opendino.app.upload_store import UploadStore

LOCAL = ("127.0.0.1", "localhost", "::1")
VISITOR = "opendino"
"""Name of the cookie that identifies a visitor."""

_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
_MAX_EVENT_BYTES, _MAX_DEPTH, _MAX_VALUES = 2**20, 32, 20_000
"""Limits of the JSON body of an event. Images are not part of it: they are uploaded."""

# Only the routes that the page needs. Gradio has more, some of which fetch any URL or run ffmpeg for the client.
_EVENTS = re.compile(r"/gradio_api/(queue/join|run/\w+|api/\w+|cancel|reset)/?")
_UPLOAD = "/gradio_api/upload"
_HEARTBEAT = "/gradio_api/heartbeat/"
_REFUSED = re.compile(
    r"(/gradio_api)?/(proxy=|deep_link|run-history|dev/|vibe|stream/|file[=/]\s*\w{2,}:)", re.IGNORECASE
)


class Guard:
    """ASGI middleware that refuses requests from other sites, unknown routes and oversized events.

    It also adds headers that forbid browsers to load anything from other hosts and to embed the page in a frame.

    Args:
        app: The page.
        host: The address that the page listens on.
        store: Handles uploads instead of Gradio's own route, which has no limit on their total size.
    """

    def __init__(self, app: ASGIApp, host: str, store: UploadStore) -> None:
        self._app, self._store = app, store
        self._local = host in LOCAL
        self._names = {*LOCAL} if self._local else {*LOCAL, host, socket.gethostname(), socket.getfqdn()}
        self._names = {name.lower() for name in self._names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request: refuse it, answer it, or pass it to the page."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            request = Request(scope, receive)
            known = request.cookies.get(VISITOR, "")
            send = _with_security_headers(send, cookie=not known and request.url.path == "/")
            await self._answer(request, known[:64], send)
        else:  # the page uses no websocket
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, request: Request, visitor: str, send: Send) -> None:
        scope, receive, path = request.scope, request.receive, request.scope["path"]
        if refusal := self._refusal(request):
            await refusal(scope, receive, send)
        elif path == f"{_UPLOAD}_progress":  # an empty answer: the browser works without progress
            await Response(media_type="text/event-stream")(scope, receive, send)
        elif request.method in ("GET", "HEAD", "OPTIONS"):
            if path.startswith(_HEARTBEAT):
                with self._store.visit(visitor):
                    await self._app(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        elif path.rstrip("/") == _UPLOAD:
            response = await self._store.take(request, visitor)
            await response(scope, receive, send)
        else:
            body = await _event(request)
            if isinstance(body, Response):
                await body(scope, receive, send)
            else:
                await self._app(scope, _replayed(body, receive), send)

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that must not reach the page; None if it may."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self._is_own(host):  # DNS rebinding: a foreign name that resolves to this machine
            return PlainTextResponse(f"Unknown host. Open the page at {self._own_name()}", 400)
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("Requests from other sites are refused", 403)
        opened_by_link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and not opened_by_link:
            return PlainTextResponse("Requests from other sites are refused", 403)
        path = request.scope["path"]
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return PlainTextResponse("Not found", 404) if _REFUSED.match(path) else None
        if request.method == "POST" and (path.rstrip("/") == _UPLOAD or _EVENTS.fullmatch(path)):
            return None
        return PlainTextResponse("Not found", 404)

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine. If other machines may use the page, any IP address counts."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or (not self._local and ipaddress.ip_address(name) is not None)
        except ValueError:
            return False

    def _own_name(self) -> str:
        return "127.0.0.1" if self._local else "the address or name given as --host"


def _with_security_headers(send: Send, cookie: bool) -> Send:
    """Wrap `send` to add security headers and, on the first request, a cookie with a random visitor name."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = _POLICY
            headers["referrer-policy"] = "no-referrer"
            headers["x-content-type-options"] = "nosniff"
            if cookie:
                name = secrets.token_hex(16)
                headers.append("set-cookie", f"{VISITOR}={name}; Path=/; HttpOnly; SameSite=Strict")
        await send(message)

    return send_with_headers


async def _event(request: Request) -> bytes | Response:
    """Read the body of an event; a response instead if it is too large or not plain JSON."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_EVENT_BYTES:
            return PlainTextResponse(f"The event is larger than {_MAX_EVENT_BYTES:,} bytes", 413)
    try:
        sent = json.loads(bytes(body), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return PlainTextResponse("The body is not JSON of this page", 400)
    if not _is_plain(sent):
        return PlainTextResponse("The body is not JSON of this page", 400)
    return bytes(body)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN, Infinity


def _is_plain(sent: Any) -> bool:
    """Whether a JSON value is within the limits and names no file by a URL, because Gradio would fetch it."""
    waiting, seen = [(sent, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            return False
        if isinstance(value, dict):
            if "://" in str(value.get("path", "")):
                return False
            waiting += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
    return True


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was already read, once more."""
    left = [body]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed
