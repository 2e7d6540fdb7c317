"""Server of the page: its folder of uploads, its limits, and headers that keep the browser from the network."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clipvid import InputError

if TYPE_CHECKING:
    from clipvid.app.shared_model import SharedModel
    from clipvid.app.teaching import Teacher

LOOPBACK = ("127.0.0.1", "localhost")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# gradio reads these from the environment. No sharing, no analytics, no other folders.
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}


class ExtraHeaders:
    """ASGI middleware that adds headers to all answers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and add the headers to its answer."""

        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        await self.app(scope, receive, send_more)


def check_gradio() -> None:
    """Raise InputError if gradio is not installed."""
    os.environ.update(_ENVIRONMENT)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError("the page needs gradio; install it: pip install 'clipvid[app]'") from None


def check_address(host: str, port: int) -> None:
    """Raise InputError if the page cannot be served at an address."""
    if not 0 < port < 65536:
        raise InputError(f"--port {port}: expected 1 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}; choose another one") from None


@contextmanager
def served(
    shared: SharedModel, name: str, host: str, port: int, max_megabytes: int, teacher: Teacher | None = None
) -> Iterator[str]:
    """Serve the page during the block, and yield its address. Uploads are deleted at the end.

    Args:
        shared: The model.
        name: Name of the model in the heading.
        host: Address to listen at.
        port: Port to listen at.
        max_megabytes: Largest upload.
        teacher: Labels and training for a folder of clips, whose encoding starts and ends with the block.

    Raises:
        InputError: gradio is not installed.
    """
    check_gradio()
    with TemporaryDirectory(prefix="clipvid-app-") as folder, _variable("GRADIO_TEMP_DIR", folder):
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from clipvid.app.page import CSS, build_page

        middleware = [Middleware(ExtraHeaders)]
        if host in LOOPBACK:  # a page of another site must not reach this one under its name
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
        page = build_page(shared, name, Path(folder), teacher)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            show_error=False,
            allowed_paths=[folder],  # an empty list would read the environment
            max_file_size=max_megabytes * 2**20,
            app_kwargs={"middleware": middleware},
            footer_links=["settings"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
        try:
            if teacher is not None:
                teacher.clips.start()
            yield address
        finally:
            page.close(verbose=False)
            if teacher is not None:
                teacher.clips.close()


def wait_for_signal() -> None:
    """Wait until Ctrl-C or SIGTERM, then raise KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        threading.Event().wait(3600)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable during the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
