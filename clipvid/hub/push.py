"""A model folder onto the Hugging Face Hub: one commit that holds all of it, or none."""

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
    """url: of the commit. kept_card: the repository's card was edited there and stays as it is."""

    url: str
    kept_card: bool


def files_to_push(folder: Path, repo_id: str, overwrite_card: bool = False) -> dict[str, Path | bytes]:
    """What goes into the repository, by path in it: the files of the model, checked, and the card.

    The card is made anew unless an edited one lies in the folder; `overwrite_card` makes it anew in any case.

    Raises:
        FileNotFoundError, ValueError: not a whole model folder; see `clipvid.hub.from_pretrained`.
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
    """Return the names of the files that the model of `config.json` consists of, as far as they exist."""
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
        InputError: it is a link or leads out of the folder, so that another file would be published.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink() or not path.is_file():
        raise InputError(f"{path} is a link or no regular file; copy the file itself into {folder} before pushing")
    return path


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload a model folder in one commit; files of an earlier push that the model no longer has go in the same.

    The token is the Hub client's own: `hf auth login`, or HF_TOKEN.

    Args:
        folder: what `save_pretrained` wrote.
        repo_id: `user/name`; made where it does not exist.
        private: whether to make it private; an existing public one is refused then.
        revision: branch to commit to, made where it does not exist; None for the main one.
        overwrite_card: replace a card that was edited, in the folder or on the Hub.

    Raises:
        FileNotFoundError, ValueError: not a whole model folder, or no id of a repository.
        PermissionError, ConnectionError: the Hub refuses, or cannot be reached; nothing was published.
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
    """Raises ValueError where `repo_id` is not `user/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"repo_id={repo_id!r} is no id of a repository: expected user/name") from error
    if "/" not in repo_id:
        raise InputError(f"repo_id={repo_id!r} lacks the user or organisation: expected user/name")


def check_login() -> None:
    """Ask the Hub who the token belongs to.

    Raises:
        PermissionError, ConnectionError, FileNotFoundError: no token, a token that is not valid, or no connection.
    """
    try:
        HfApi().whoami()
    except HTTPError as error:
        raise hub_error(error, "the push that was asked for") from error
    except OSError as error:  # no token, or offline
        raise PermissionError(f"a push to the Hub was asked for, and will not work: {error} ({LOGIN})") from error


def _publish(
    files: dict[str, Path | bytes], repo_id: str, private: bool, revision: str | None, overwrite_card: bool
) -> Pushed:
    """One try. Everything is decided from the head seen at its start, which must still be the head at the commit."""
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
    """Whether trying again may help. What was committed before the answer got lost is found there, unchanged."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, HTTPError)
