"""Conversion of Hugging Face Hub errors to messages with a remedy."""

from __future__ import annotations

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from clipvid.files import one_line

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_error(error: Exception, repo_id: str, revision: str | None = None) -> OSError:
    """Convert an error of the Hub client to one with a remedy."""
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} on the Hub has no revision {revision!r}; pass a branch, tag or commit")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id} on the Hub is gated: request access on its page, then {LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f"the Hub has no repository {repo_id}, or it is private ({LOGIN})")
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return FileNotFoundError(
            f"{repo_id} is not (or not completely) in the cache, and the Hub cannot be reached: HF_HUB_OFFLINE is "
            f"set, or the connection failed ({one_line(error)})"
        )
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"the connection to the Hub failed for {repo_id}: {error or type(error).__name__}")
    status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    advice = {
        401: LOGIN,
        403: "your token lacks the permission; create one with write access (https://huggingface.co/settings/tokens)",
        409: "the repository was changed at the same time; try again",
        412: "the repository was changed at the same time; try again",
        429: "too many requests; wait and try again",
    }.get(status, "try again later" if status >= 500 else "see the message of the server")
    kind = PermissionError if status in (401, 403) else ConnectionError
    return kind(f"the Hub refused {repo_id} ({status}: {said}): {advice}")
