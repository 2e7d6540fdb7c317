"""Functions that tests of the Hub run in a separate process, whose environment points at the server of `hub_server.py`.

They are imported there without conftest, which would set offline mode.
"""

import contextlib
import io
import os

import torch
from transformers import AutoModelForVideoClassification, Trainer, TrainingArguments, pipeline

from clipvid import commands
from clipvid.hub.loading import from_pretrained

torch.set_num_threads(1)


def set_token(token: str | None) -> None:
    """Set the token of later calls in the environment."""
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token


def logits(source: str, frames: torch.Tensor, revision: str | None = None) -> torch.Tensor:
    """Return the logits of a model from a folder or the Hub."""
    with torch.no_grad():
        return from_pretrained(source, revision)(frames).logits


def video_features(source: str, frames: torch.Tensor) -> torch.Tensor:
    """Return the video features of a model from a folder or the Hub."""
    with torch.no_grad():
        return from_pretrained(source).encode_video(frames)


def classify(source: str, video: str) -> list[dict]:
    """Return the result of transformers' pipeline for a video."""
    return pipeline("video-classification", model=source, device="cpu")(video)


def command(verb: str, *args: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `clipvid <verb> args`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            commands.run(verb, list(args))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def save_from_transformers(source: str, folder: str, way: str) -> None:
    """Push a model folder through the model class of transformers, in one of its ways."""
    model = AutoModelForVideoClassification.from_pretrained(source)
    if way == "save_pretrained":
        model.save_pretrained(folder, push_to_hub=True)
    elif way == "repo_id":
        model.save_pretrained(folder, push_to_hub=True, repo_id="user/model", max_shard_size="20KB")
    elif way == "push_to_hub":
        model.push_to_hub("user/model")
    else:
        clips = [{"pixel_values_videos": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "labels": 0}]
        arguments = TrainingArguments(
            folder, max_steps=1, report_to="none", use_cpu=True, push_to_hub=True, hub_model_id="user/model",
            disable_tqdm=True, learning_rate=0.0,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=clips).push_to_hub()
