"""Messages about retries of the Hub client."""

import logging

from clipvid.backbone.hub_retries import announce_retries_once


def test_retries_are_announced_once(capsys, caplog):
    client = logging.getLogger("huggingface_hub.utils._http")
    with announce_retries_once():
        for attempt in range(1, 4):
            client.warning("'[Errno -2]' thrown while requesting HEAD https://huggingface.co/a/b")
            client.warning(f"Retrying in {attempt}s [Retry {attempt}/5].")
        client.warning("another message")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("the Hub cannot be reached, trying again for up to a minute; '[Errno -2]' thrown")
    assert lines[1] == "another message"
    assert client.propagate
    assert not client.filters
    assert not client.handlers
