"""The model card: what a model folder says of itself, made from its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A video model made with [clipvid](https://pypi.org/project/clipvid): the image encoder of CLIP `{{ backbone }}` over \
{{ num_frames }} frames, temporal adapter: {{ adapter }}, pooling: {{ pooling }}, head: {{ head }}. \
Trained: {{ tune }}.

## Use

```python
import clipvid
from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.data.transforms import eval_transform

model = clipvid.from_pretrained("{{ name }}")  # a folder, or an id on the Hub
with open_video("clip.mp4") as video:
    frames = video.read(uniform_indices(len(video), model.num_frames))  # uint8 [T, H, W, 3]
clip = eval_transform(model.image_size)(frames.permute(0, 3, 1, 2))[None]
print(model(clip).logits.softmax(-1))  # one probability for each of model.labels
```

## Measured

{{ measured }}

## Classes

{{ classes }}
"""


def write_card(folder: Path) -> Path:
    """Write `README.md` into a model folder from its `config.json` and, where there is one, its `metrics.json`."""
    record = json.loads((folder / "config.json").read_text())
    measured = folder / "metrics.json"
    metrics = json.loads(measured.read_text()) if measured.is_file() else None
    text = _card_text(folder.name, record, metrics)
    card = ModelCard.from_template(_card_data(record), template_str=TEMPLATE, **text)
    path = folder / "README.md"
    card.save(path)
    return path


def _card_data(record: dict[str, Any]) -> ModelCardData:
    model, base = record["model"], record["backbone"]["name"]
    adapters = [] if model["adapter"] == "none" else [choice["name"] for choice in model["adapter"]]
    return ModelCardData(
        library_name="clipvid",
        pipeline_tag="video-classification",
        base_model=base.removeprefix("hf-hub:") if base.startswith("hf-hub:") else None,
        tags=["clipvid", "clip", "video-classification", *adapters],
    )


def _card_text(name: str, record: dict[str, Any], metrics: dict[str, Any] | None) -> dict[str, str]:
    model, backbone = record["model"], record["backbone"]
    weights = f" ({backbone['pretrained']})" if backbone["pretrained"] else ""
    return {
        "name": name,
        "backbone": backbone["name"] + weights,
        "num_frames": str(model["num_frames"]),
        "adapter": _named(model["adapter"]),
        "pooling": _named(model["pooling"]),
        "head": _named(model["head"]),
        "tune": ", ".join(model["tune"]),
        "measured": "Nothing was measured yet." if metrics is None else _measured(metrics),
        "classes": ", ".join(record["labels"]) or "Any that are named: `model.set_labels([...])`.",
    }


def _named(choice: Any) -> str:
    """A choice, or a list of them, in words: `ila (hidden 64, norm group)`."""
    if isinstance(choice, list):
        return ", ".join(map(_named, choice))
    if isinstance(choice, str):
        return choice
    options = ", ".join(f"{key} {value}" for key, value in choice.items() if key != "name")
    return f"{choice['name']} ({options})" if options else str(choice["name"])


def _measured(metrics: dict[str, Any]) -> str:
    data = metrics["config"]["data"]
    lines = [f"`{data['protocol']}` on `{data['val']}`, {metrics['top1']['count']} videos, 95% Wilson intervals.", ""]
    lines += ["| figure | value |", "|---|---|"]
    for key, value in metrics.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            lines.append(f"| {key} | {value['value']:.3f} ({value['low']:.3f}-{value['high']:.3f}) |")
        elif isinstance(value, float):
            lines.append(f"| {key} | {value:.3f} |")
    return "\n".join(lines)
