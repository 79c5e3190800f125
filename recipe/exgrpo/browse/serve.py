"""`exgrpo browse --serve`: the page on this machine only, made anew when the run has gone on; any trajectory's tokens."""

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import numpy as np

from recipe.exgrpo.browse import tokens
from recipe.exgrpo.browse.page import Page
from recipe.exgrpo.browse.sources import READING, Content, Source

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"


class Site:
    """The newest content and its page. A state that cannot be read, as while it is replaced, leaves the last page in place."""

    def __init__(
        self, read: Callable[[], Content], draw: Callable[[Content], Page], words: Callable[[], tokens.Words]
    ) -> None:
        self.read, self.draw, self.words = read, draw, words
        self._lock, self._stamp = Lock(), ""
        self.content, self.page = self._made()

    def stamp(self) -> str:
        """Changes when there is something new; the newest state is looked for again."""
        source = self.content.source
        try:
            return Source.find(source.run or source.experience).stamp()
        except OSError:
            return self._stamp

    def current(self) -> Page:
        with self._lock:
            if self.stamp() != self._stamp:
                try:
                    self.content, self.page = self._made()
                except READING as error:
                    logger.warning("showing the page as it was: %s", error)
        return self.page

    def tokens_of(self, row: int) -> dict | None:
        """One trajectory as `page.js` unpacks it; None when it is gone."""
        frozen = self.content.frozen
        at = np.flatnonzero(frozen.rows["row_serial"] == row) if frozen else []
        if not len(at):
            return None
        words, (ids, log_probs) = self.words(), frozen.tokens(at)
        numbers = words.numbers(ids)
        return {"words": words.texts(), "data": tokens.packed(numbers, log_probs)}

    def _made(self) -> tuple[Content, Page]:
        content = self.read()
        stamp = content.source.stamp()
        page = self.draw(content)
        self._stamp = stamp
        return content, page


class Handler(BaseHTTPRequestHandler):
    """GET `/`, `/stamp` and `/tokens/ROW`, for browsers that asked for this machine by name."""

    server: "Server"
    server_version = "exgrpo"

    def do_GET(self) -> None:
        # Another name in Host is a page elsewhere whose name was pointed at this machine (DNS rebinding).
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", "this page is for 127.0.0.1 and localhost")
        if self.path == "/":
            return self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.site.current().html)
        if self.path == "/stamp":
            return self._send(HTTPStatus.OK, "text/plain", self.server.site.stamp())
        row = self.path.removeprefix("/tokens/")
        found = self.server.site.tokens_of(int(row)) if row.isascii() and row.isdigit() and len(row) < 19 else None
        if found is None:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", "not here")
        return self._send(HTTPStatus.OK, "application/json", json.dumps(found))

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, form: str, *args) -> None:
        logger.debug(form, *args)


class Server(ThreadingHTTPServer):
    """On a port of this machine (0: a free one)."""

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        super().__init__((HOST, port), Handler)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"
