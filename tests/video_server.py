"""Web server of videos for tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        files, cut = self.server.files, self.server.cut
        if self.path not in files:
            self.send_error(404)
            return
        content, tag = files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if tag is not None:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *args) -> None:
        pass


@contextmanager
def video_server() -> Iterator[Any]:
    """Serve `files`, content and tag by path. With `cut`, a download ends in the middle."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut = {}, False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
