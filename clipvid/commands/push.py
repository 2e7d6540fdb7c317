"""Upload of a model folder to the Hugging Face Hub: `clipvid push --model outputs/my_videos --repo_id user/name`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from clipvid.files import printable, printable_lines


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    options = build_parser().parse_args(args)

    from clipvid.hub.push import push_to_hub

    if options.dry_run:
        show(options)
        return
    pushed = push_to_hub(options.model, options.repo_id, options.private, options.revision, options.overwrite_card)
    if pushed.kept_card:
        print("the card on the Hub was edited there and is kept; --overwrite_card replaces it")
    print(pushed.url)


def build_parser() -> ArgumentParser:
    """Build the parser of the verb. The token is that of `hf auth login`, or HF_TOKEN, and not an option."""
    parser = ArgumentParser(prog="clipvid push", description="Upload a model folder to the Hub, in one commit.")
    parser.add_argument("--model", type=Path, required=True, help="the model folder")
    parser.add_argument("--repo_id", type=str, required=True, help="user/name; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create it as private; refuse an existing public one")
    parser.add_argument("--revision", type=str | None, help="branch to commit to, created if it does not exist")
    parser.add_argument("--overwrite_card", action="store_true", help="replace an edited card, here or on the Hub")
    parser.add_argument(
        "--dry_run", action="store_true", help="show what would be uploaded, without contacting the Hub"
    )
    return parser


def show(options: Any) -> None:
    """Print the card, and then the files that a push would upload."""
    from clipvid.hub.push import check_repo_id, files_to_push

    check_repo_id(options.repo_id)
    files = files_to_push(options.model, options.repo_id, options.overwrite_card)
    card = files["README.md"]
    print(printable_lines(card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")))
    print(f"\nwould upload to {options.repo_id}, revision {options.revision or 'main'}:")
    total = 0
    for path, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        total += size
        print(f"{size:>13,}  {printable(path)}")
    print(f"{total:>13,}  bytes in total")
