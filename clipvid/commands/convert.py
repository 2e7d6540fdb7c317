"""Conversion of authors' checkpoints: `clipvid convert ila --checkpoint x.pth --num_frames 8 --output_dir d`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from clipvid import InputError

METHODS = ("ila",)


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    parser = ArgumentParser(prog="clipvid convert", description="Convert a checkpoint of a paper's authors.")
    parser.add_argument("method", choices=METHODS, help="method of the checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True, help=".pth or .safetensors as released")
    parser.add_argument("--num_frames", type=int, required=True, help="frames per clip in its training")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model folder to write")
    options = parser.parse_args(args)

    from clipvid.convert import from_ila
    from clipvid.hub.card import write_card

    converters = {"ila": from_ila}
    model = converters[options.method](read_checkpoint(options.checkpoint), options.num_frames)
    model.save_pretrained(options.output_dir)
    write_card(options.output_dir)
    print(f"{options.method} with {model.num_frames} frames of {model.image_size} px -> {options.output_dir}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the tensors of a checkpoint. Pickled code is refused.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: The file is not a checkpoint, or has more than tensors and plain values.
    """
    import torch

    from clipvid.hub.folder import read_tensors

    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} is not a checkpoint of tensors only: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, expected a state dict")
    return content
