"""Errors of the Hugging Face Hub in words that say what to do."""

from __future__ import annotations

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_error(error: Exception, repo_id: str, revision: str | None = None) -> OSError:
    """What the Hub's client raised, as one error that says what to do."""
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} on the Hub has no revision {revision!r}; give a branch, tag or commit")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id} on the Hub is gated: ask for access on its page, then {LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f"the Hub has no repository {repo_id}, or it is private ({LOGIN})")
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return FileNotFoundError(
            f"{repo_id} is not (or not whole) in the cache, and the Hub cannot be asked: HF_HUB_OFFLINE is set, or "
            f"there is no connection to it ({error})"
        )
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"the connection to the Hub failed for {repo_id}: {error or type(error).__name__}")
    status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    advice = {
        401: LOGIN,
        403: "your token has no right to this; make one with write access (https://huggingface.co/settings/tokens)",
        409: "somebody else changed the repository at the same time; try again",
        412: "somebody else changed the repository at the same time; try again",
        429: "too many requests; wait a while and try again",
    }.get(status, "try again later" if status >= 500 else "see what the server says")
    kind = PermissionError if status in (401, 403) else ConnectionError
    return kind(f"the Hub refused {repo_id} ({status}: {said}): {advice}")
