"""Upload of a model folder to the Hugging Face Hub in one atomic commit."""

from __future__ import annotations

import json
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from clipvid import InputError
from clipvid.backbone import BACKBONE_FILES
from clipvid.hub.card import card_text, is_edited, public_config, public_metrics
from clipvid.hub.errors import LOGIN, hub_error
from clipvid.hub.folder import MODEL_FILES, read_record, read_weights
from clipvid.model.saving import LORA_FOLDER, LORA_WEIGHTS

CARD = "README.md"
ATTEMPTS = 4
_PASSING = (409, 412, 429, 500, 502, 503, 504)


class Pushed(NamedTuple):
    """Result of a push.

    Attributes:
        url: URL of the commit.
        kept_card: True if the repository's card was edited there and is kept.
    """

    url: str
    kept_card: bool


def files_to_push(folder: Path, repo_id: str, overwrite_card: bool = False) -> dict[str, Path | bytes]:
    """Return the content of the repository by path: the checked files of the model, and the card.

    A new card is written unless the folder contains an edited one. `overwrite_card` always writes a new one.

    Raises:
        FileNotFoundError: The model folder is incomplete; see `clipvid.hub.from_pretrained`.
        InputError: The folder is not a model folder; see `clipvid.hub.from_pretrained`.
    """
    record = read_record(folder)
    read_weights(folder, record)
    files: dict[str, Path | bytes] = {name: _regular_file(folder, name) for name in _owned_files(folder, record)}
    files["config.json"] = json.dumps(public_config(record), indent=2).encode()
    metrics = public_metrics(folder)
    if metrics is not None:
        files["metrics.json"] = json.dumps(metrics, indent=2).encode()
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() and not overwrite_card else None
    if text is None or not is_edited(text):
        text = card_text(folder, repo_id)
    return files | {CARD: text.encode()}


def _owned_files(folder: Path, record: dict[str, Any]) -> list[str]:
    """Return the names of the existing files of the model in `config.json`."""
    weights = record.get("files", {"model.safetensors": ""})
    names = ["config.json", "video_preprocessor_config.json", *weights]
    if LORA_WEIGHTS in weights:
        names.append(f"{LORA_FOLDER}/adapter_config.json")
    if record["backbone"]["embedded"]:
        names += [f"backbone/{name}" for name in BACKBONE_FILES]
    return [name for name in names if (folder / name).exists()]


def _regular_file(folder: Path, name: str) -> Path:
    """Return a file of the model folder.

    Raises:
        InputError: The file is a link or outside the folder, so that another file would be published.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink() or not path.is_file():
        raise InputError(f"{path} is a link or not a regular file; copy the file itself into {folder} before pushing")
    return path


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload a model folder in one commit. Files of an earlier push that the model no longer has are deleted in it.

    The token is that of the Hub client: `hf auth login`, or HF_TOKEN.

    Args:
        folder: Folder written by `save_pretrained`.
        repo_id: `user/name`, created if it does not exist.
        private: Create a private repository. An existing public one is refused.
        revision: Branch to commit to, created if it does not exist. None means the main branch.
        overwrite_card: Replace an edited card in the folder or on the Hub.

    Raises:
        FileNotFoundError: The model folder is incomplete.
        InputError: The folder is not a model folder, or `repo_id` is invalid.
        PermissionError: The Hub refuses access. Nothing was published.
        ConnectionError: The Hub cannot be reached. Nothing was published.
    """
    check_repo_id(repo_id)
    files = files_to_push(Path(folder), repo_id, overwrite_card)
    attempt = 1
    while True:
        try:
            return _publish(files, repo_id, private, revision, overwrite_card)
        except (HTTPError, OfflineModeIsEnabled, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error  # the client wraps failed uploads
            if not isinstance(cause, HTTPError | OfflineModeIsEnabled):
                raise
            if attempt == ATTEMPTS or not _may_pass(error):
                raise hub_error(cause, repo_id, revision) from error
            time.sleep(2 ** (attempt - 1))
            attempt += 1


def check_repo_id(repo_id: str) -> None:
    """Raise InputError if `repo_id` is not `user/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"repo_id={repo_id!r} is not a repository id: expected user/name") from error
    if "/" not in repo_id:
        raise InputError(f"repo_id={repo_id!r} lacks the user or organization: expected user/name")


def check_login() -> None:
    """Check the token with the Hub.

    Raises:
        PermissionError: The token is missing or invalid, or the client is offline.
        ConnectionError: The Hub cannot be reached.
    """
    try:
        HfApi().whoami()
    except HTTPError as error:
        raise hub_error(error, "the requested push") from error
    except OSError as error:  # no token, or offline
        raise PermissionError(f"the requested push to the Hub will not work: {error} ({LOGIN})") from error


def _publish(
    files: dict[str, Path | bytes], repo_id: str, private: bool, revision: str | None, overwrite_card: bool
) -> Pushed:
    """Try to publish once. All decisions depend on the head at the start, which the commit requires unchanged."""
    api = HfApi(library_name="clipvid")
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.model_info(repo_id, revision=revision)
    if private and not head.private:
        raise InputError(f"{repo_id} exists and is public: make it private in its settings, or push without private")
    there = [entry.rfilename for entry in head.siblings or []]
    kept_card = CARD in there and not overwrite_card and _card_was_edited(repo_id, head.sha)
    additions = [
        CommitOperationAdd(path, content) for path, content in files.items() if not (path == CARD and kept_card)
    ]
    stale = [path for path in there if path not in files and any(fnmatch(path, pattern) for pattern in MODEL_FILES)]
    commit = api.create_commit(
        repo_id,
        [*additions, *map(CommitOperationDelete, stale)],
        commit_message="Upload model with clipvid",
        revision=revision,
        parent_commit=head.sha,
    )
    return Pushed(str(commit.commit_url), kept_card)


def _card_was_edited(repo_id: str, commit: str | None) -> bool:
    return is_edited(Path(hf_hub_download(repo_id, CARD, revision=commit)).read_text(encoding="utf-8"))


def _may_pass(error: Exception) -> bool:
    """Return True if a retry may help. A commit whose response was lost is found unchanged."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, HTTPError)
