"""A proxy before an S3 server that does to chosen requests what networks and stores do."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# What a store answers, by the name of the fault: status, code.
ANSWERS = {
    "500": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "denied": (403, "AccessDenied"),
    "unknown_key": (403, "InvalidAccessKeyId"),
    "precondition": (412, "PreconditionFailed"),
    "conflict": (409, "ConditionalRequestConflict"),
    "not_implemented": (501, "NotImplemented"),
    "html": (200, ""),
}
CONDITIONS = ("if-match", "if-none-match")


@dataclass
class Fault:
    """`kind`: a name in ANSWERS, or what `_Handler` has a method of.

    It happens to requests whose "METHOD /path?query" `pattern` finds, not to the first `skip` of
    them, and to `times` of them; `after` is how many bytes of the body come through before.
    """

    kind: str
    pattern: str = ""
    skip: int = 0
    times: int = 1 << 30
    after: int = 1000
    happened: int = 0
    _seen: int = field(default=0, repr=False)

    def happens_to(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self._seen += 1
        if self._seen <= self.skip or self.happened >= self.times:
            return False
        self.happened += 1
        return True


@dataclass
class Proxy:
    """`requests` has "METHOD /path?query" of all that came."""

    server: str  # host:port
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, pattern: str = "", **more: int) -> Fault:
        self.faults.append(Fault(kind, pattern, **more))
        return self.faults[-1]

    def count(self, pattern: str = "") -> int:
        with self.lock:
            return sum(bool(re.search(pattern, request)) for request in self.requests)

    def meet(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.happens_to(request)), None)

    def forget(self) -> None:
        with self.lock:
            self.requests.clear()
            self.faults.clear()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes is what the tests are about


@contextlib.contextmanager
def proxy_of(url: str) -> Iterator[Proxy]:
    proxy = Proxy(urlsplit(url).netloc)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fault = self.server.proxy.meet(f"{self.command} {self.path}")
        kind = fault.kind if fault else "pass_on"
        if kind == "reset_request":
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(min(length, fault.after) if fault else 0)
            self._reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind in ANSWERS:
            self._answer(*ANSWERS[kind])
        else:
            getattr(self, f"_{kind}")(fault, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forward(self, body: bytes, without: tuple[str, ...] = ()) -> tuple[int, list, bytes]:
        upstream = http.client.HTTPConnection(self.server.proxy.server, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection", *without):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _begin(self, status: int, headers: list, length: int) -> None:
        self.send_response_only(status)
        given = {name.lower(): value for name, value in headers}
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", given.get("content-length", "0"))
        elif status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _respond(self, status: int, headers: list, body: bytes) -> None:
        self._begin(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self, status: int, code: str) -> None:
        # AWS names the key id in some errors; the message may too.
        text = (
            f"<Error><Code>{code}</Code><Message>{self.headers.get('Authorization')}</Message>"
            f"<AWSAccessKeyId>{self.headers.get('Authorization')}</AWSAccessKeyId></Error>"
            if code
            else "<html>Welcome</html>"
        )
        self._respond(status, [("Content-Type", "application/xml")], text.encode())

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def _pass_on(self, fault: Fault | None, body: bytes) -> None:
        self._respond(*self._forward(body))

    def _broken(self, fault: Fault, body: bytes) -> None:
        """The head of the answer is right, and then come but some bytes."""
        status, headers, content = self._forward(body)
        self._begin(status, headers, len(content))
        self.wfile.write(content[: fault.after])
        self.wfile.flush()

    def _reset_answer(self, fault: Fault, body: bytes) -> None:
        self._broken(fault, body)
        self._reset()

    def _truncate(self, fault: Fault, body: bytes) -> None:
        self._broken(fault, body)
        self.close_connection = True

    def _stall(self, fault: Fault, body: bytes) -> None:
        self._broken(fault, body)
        self.server.proxy.ended.wait(30)
        self.close_connection = True

    def _silence(self, fault: Fault, body: bytes) -> None:
        self.server.proxy.ended.wait(30)
        self.close_connection = True

    def _lose(self, fault: Fault, body: bytes) -> None:
        """The server does what is asked, and nobody hears of it."""
        self._forward(body)
        self._reset()

    def _flip_answer(self, fault: Fault, body: bytes) -> None:
        status, headers, content = self._forward(body)
        self._respond(status, headers, _flipped(content, fault.after))

    def _flip_request(self, fault: Fault, body: bytes) -> None:
        self._respond(*self._forward(_flipped(body, fault.after)))

    def _ignore_conditions(self, fault: Fault, body: bytes) -> None:
        self._respond(*self._forward(body, without=CONDITIONS))

    def _ignore_range(self, fault: Fault, body: bytes) -> None:
        self._respond(*self._forward(body, without=("range",)))

    def _refuse_conditions(self, fault: Fault, body: bytes) -> None:
        if any(name in self.headers for name in CONDITIONS):
            self._answer(*ANSWERS["not_implemented"])
        else:
            self._respond(*self._forward(body))


def _flipped(content: bytes, at: int) -> bytes:
    at = min(at, len(content) - 1)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
