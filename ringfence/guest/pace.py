"""Connections on which a mirror is given up when it sends, but too slowly to be waited for.

Time is taken where bytes leave the socket, because a header or a redirection may drip as well as a file.
"""

import io
import time
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from ringfence.errors import MirrorError

WINDOW = 60.0
"""Seconds over which a mirror's rate is taken."""
FLOOR = 1000
"""Bytes a second that a mirror has to send."""
PAUSE = 30.0
"""The most seconds that count between two receipts: this process may have been suspended."""


class Pace:
    """The rate of one file, over as many connections as it takes; MirrorError with `sentence` where it is too low."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._in_file = True
        self._seconds = 0.0
        self._bytes = 0
        self._last = time.monotonic()

    def count(self, size: int) -> None:
        """So many bytes came since the last call."""
        now = time.monotonic()
        self._seconds += min(now - self._last, PAUSE)
        self._last = now
        self._bytes += size if self._in_file else 0
        if self._seconds >= WINDOW:
            if self._bytes < FLOOR * self._seconds:
                raise MirrorError(self._sentence)
            self._seconds, self._bytes = 0.0, 0

    def open(self, request: Request, timeout: float) -> HTTPResponse:
        """What is behind an http or https address. Headers and redirections take time, and are not of the file."""
        self._in_file = False
        opener = OpenerDirector()
        for handler in (ProxyHandler, UnknownHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler, HTTPErrorProcessor):
            opener.add_handler(handler())
        opener.add_handler(_Handler(self))
        response: HTTPResponse = opener.open(request, timeout=timeout)
        self._in_file = True
        return response


class _Handler(HTTPHandler, HTTPSHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def do_open(self, http_class: Any, req: Any, **options: Any) -> HTTPResponse:
        def response(*arguments: Any, **options: Any) -> HTTPResponse:
            made = HTTPResponse(*arguments, **options)
            made.fp = io.BufferedReader(_Counted(made.fp.detach(), self._pace))
            return made

        def connection(*arguments: Any, **options: Any) -> HTTPConnection:
            made: HTTPConnection = http_class(*arguments, **options)
            made.response_class = response  # type: ignore[assignment]
            return made

        return super().do_open(connection, req, **options)


class _Counted(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw = raw
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview[int]") -> int | None:  # type: ignore[override]
        size = 0
        try:
            size = self._raw.readinto(buffer) or 0
        finally:
            self._pace.count(size)  # after a time-out too
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()
