"""Conversion of released checkpoints: `clipvid convert auto --checkpoint x.pth --output_dir d`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from clipvid import InputError

if TYPE_CHECKING:
    from clipvid.model.video_clip import VideoCLIP

KINDS = ("auto", "action_clip", "ila", "mote", "st_adapter", "vifi_clip", "xclip")


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    parser = ArgumentParser(prog="clipvid convert", description="Convert a checkpoint that a paper's authors released.")
    parser.add_argument("kind", choices=KINDS, help="kind of the checkpoint, or auto to recognize it")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="file as released, or folder of transformers' XCLIPModel"
    )
    parser.add_argument("--num_frames", type=int | None, help="frames per clip in its training, if the file lacks it")
    parser.add_argument("--backbone", type=str | None, help="CLIP that it was trained from (vifi_clip)")
    parser.add_argument("--pretrained", type=str | None, help="weights of --backbone")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model folder to write")
    options = parser.parse_args(args)

    from clipvid.backbone import load_backbone
    from clipvid.convert import convert_checkpoint
    from clipvid.hub.card import write_card

    if options.checkpoint.is_dir():
        model = read_folder(options.checkpoint, options.kind)
    else:
        checkpoint = read_checkpoint(options.checkpoint)
        base = None if options.backbone is None else load_backbone(options.backbone, options.pretrained)
        model = convert_checkpoint(options.kind, checkpoint, options.num_frames, base)
    model.save_pretrained(options.output_dir)
    write_card(options.output_dir)
    print(f"{model.origin}, {model.num_frames} frames of {model.image_size} px -> {options.output_dir}")


def read_folder(folder: Path, kind: str) -> VideoCLIP:
    """Read a folder of transformers' `XCLIPModel`.

    Raises:
        InputError: The folder has another model, or `kind` is another one.
    """
    from clipvid.hub.folder import is_xclip
    from clipvid.hub.loading import from_pretrained

    if kind not in ("auto", "xclip") or not is_xclip(folder):
        raise InputError(f"--checkpoint {folder}: expected a file, or for xclip a folder of transformers' XCLIPModel")
    return from_pretrained(folder)


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
        raise InputError(
            f"{path} is damaged, or has more than tensors and plain values; code in a checkpoint is never run"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, expected a state dict")
    return content
