"""One file as an S3 object at http://127.0.0.1:PORT/bucket/key, with next to no work of the server.

`python static_store.py FILE`; prints the port.
"""

from __future__ import annotations

import http.server
import os
import re
import sys
from email.utils import formatdate
from pathlib import Path


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    file: int
    size: int

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._begin(200, 0, self.size)

    def do_GET(self) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, self.size) if span and span[2] else self.size
        self._begin(206 if span else 200, begin, end)
        while begin < end:
            begin += os.sendfile(self.connection.fileno(), self.file, begin, end - begin)

    def _begin(self, status: int, begin: int, end: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", '"static"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{self.size}")
        self.end_headers()


def main() -> None:
    path = Path(sys.argv[1])
    _Handler.file, _Handler.size = os.open(path, os.O_RDONLY), path.stat().st_size
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
