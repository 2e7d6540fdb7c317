"""Options that choose a model, shared by the verbs that use one."""

from __future__ import annotations

from jsonargparse import ArgumentParser


def add_model_options(parser: ArgumentParser, clips: str = "clips", exported: bool = False) -> None:
    """Add `--model` and what belongs to it: revision on the Hub, weights and frames of a plain CLIP.

    Args:
        parser: Parser of the verb.
        clips: What the verb gives to the model, in the help.
        exported: The verb also takes a file of `clipvid export`.
    """
    kinds = ["model folder", "repository on the Hub", "a CLIP (tiny, ViT-B-16 ...)"]
    kinds += ["model.onnx of clipvid export"] if exported else []
    text = f"{', '.join(kinds[:-1])}, or {kinds[-1]}"
    parser.add_argument("--model", type=str, required=True, help=text)
    parser.add_argument("--revision", type=str | None, help="branch, tag or commit of the repository")
    parser.add_argument("--pretrained", type=str | None, help="weights of a plain CLIP: openai, laion2b_s34b_b79k ...")
    parser.add_argument("--num_frames", type=int | None, help=f"frames of {clips} for a plain CLIP, 8 by default")


def add_label_options(parser: ArgumentParser) -> None:
    """Add `--labels` and `--templates`."""
    parser.add_argument("--labels", nargs="+", type=str, help="class names; by default those of the model")
    parser.add_argument("--templates", type=str | list[str] | None, help="prompt templates, or the name of a set")
