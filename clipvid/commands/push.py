"""A model folder onto the Hugging Face Hub: `clipvid push --model outputs/my_videos --repo_id user/name`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    options = build_parser().parse_args(args)

    from clipvid.hub.push import push_to_hub

    if options.dry_run:
        show(options)
        return
    pushed = push_to_hub(options.model, options.repo_id, options.private, options.revision, options.overwrite_card)
    if pushed.kept_card:
        print("the card on the Hub was edited there and stays as it is; --overwrite_card replaces it")
    print(pushed.url)


def build_parser() -> ArgumentParser:
    """The options of the verb. There is none for the token: it is that of `hf auth login`, or HF_TOKEN."""
    parser = ArgumentParser(prog="clipvid push", description="Upload a model folder to the Hub, in one commit.")
    parser.add_argument("--model", type=Path, required=True, help="the model folder")
    parser.add_argument("--repo_id", type=str, required=True, help="user/name; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="make it private; an existing public one is refused")
    parser.add_argument("--revision", type=str | None, help="branch to commit to, made where it does not exist")
    parser.add_argument("--overwrite_card", action="store_true", help="replace a card that was edited, here or there")
    parser.add_argument(
        "--dry_run", action="store_true", help="show what would be uploaded, and ask nothing of the Hub"
    )
    return parser


def show(options: Any) -> None:
    """Print what a push would upload, and the card."""
    from clipvid.hub.push import check_repo_id, files_to_push

    check_repo_id(options.repo_id)
    files = files_to_push(options.model, options.repo_id, options.overwrite_card)
    print(f"would upload to {options.repo_id}, revision {options.revision or 'main'}:")
    total = 0
    for path, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        total += size
        print(f"{size:>13,}  {path}")
    print(f"{total:>13,}  bytes in all\n")
    card = files["README.md"]
    print(card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8"))
