"""Real browser on the page of `clipvid app`, for its tests. Needs playwright and chromium."""

import asyncio
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HOSTILE = "<img src=x onerror=window.hacked=1>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CAMERA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield chromium with a camera that plays a test picture. Skip the test without chromium or playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()
    asyncio.set_event_loop(None)


@contextmanager
def watched_tab(browser: Any, address: str) -> Iterator[Any]:
    """Yield a tab with the page. No request may leave this machine, and no script of a name may run."""
    context = browser.new_context(permissions=["camera", "microphone"])
    tab = open_tab(context, address)
    outside = []
    context.on("request", lambda request: outside.append(request.url) if is_outside(request.url, address) else None)
    tab.on("dialog", lambda dialog: outside.append(dialog.message))
    yield tab
    assert tab.evaluate("window.hacked") is None
    context.close()
    assert not outside


def is_outside(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def open_tab(context: Any, address: str) -> Any:
    """Return a new tab with the page."""
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.goto(address)
    tab.wait_for_selector("#classify")
    return tab


def focus(tab: Any, selector: str) -> None:
    """Press the Tab key until an element has the focus."""
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached with the Tab key")
