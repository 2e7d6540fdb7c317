"""Model card of a model folder, written from its files. Edited cards are kept."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from clipvid.adapters import ADAPTERS
from clipvid.backbone import hub_repository
from clipvid.files import markdown_code, markdown_text, printable, write_text
from clipvid.model.heads import HEADS
from clipvid.model.pooling import POOLING
from clipvid.model.tuning import TUNING
from clipvid.registry import Choice

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A video model made with clipvid: the image encoder of CLIP {{ backbone }} over \
{{ num_frames }} frames, temporal adapter: {{ adapter }}, pooling: {{ pooling }}, head: {{ head }}. \
Trained: {{ tune }}.

## Use

```
clipvid predict --model {{ shell_name }} clip.mp4
```
```python
import clipvid

model = clipvid.from_pretrained({{ python_name }})  # a folder, or an id on the Hub; revision=... for a branch or commit
print(clipvid.Predictor(model)("clip.mp4"))  # [{"label": ..., "score": ...}, ...]
```
```python
import clipvid  # makes the model known to transformers
from transformers import pipeline

print(pipeline("video-classification", model={{ python_name }})("clip.mp4"))
```

## Measured

{{ measured }}

## Classes

{{ classes }}

## Training

{{ training }}

{{ origin }}## Papers

{{ papers }}
"""
PAPERS = (
    "CLIP: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020",
    "open_clip: Ilharco et al., 2021, https://doi.org/10.5281/zenodo.5143773",
)
_MARK = "<!-- Written by clipvid, SHA-256 of the text above {}. An edited card is kept as it is. -->"
_TEXT_FIELDS = ("labels", "templates")
_TOWER_FIELDS = ("backbone", "model", "name")
_PATH_FIELDS = (
    *("model", "backbone", "pretrained", "init_from", "output_dir", "export_dir", "root", "train", "val", "classes"),
    *("file", "path", "videos", "base", "lists", "templates", "descriptions", "data_dir", "data_files"),
)
_FIGURES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "map": "mean average precision"}


def write_card(folder: Path) -> Path:
    """Write `README.md` into a model folder, unless it has an edited one; see `card_text`."""
    path = folder / "README.md"
    if not (path.is_file() and is_edited(path.read_text(encoding="utf-8"))):
        write_text(path, card_text(folder, folder.name))
    return path


def card_text(folder: Path, name: str) -> str:
    """Return the card of a model folder from its `config.json` and, if it exists, its `metrics.json`.

    `name` is the folder or repository that the card's examples load.
    """
    record = public_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    metrics = public_metrics(folder)
    data = _card_data(name, record, metrics)
    text = str(ModelCard.from_template(data, template_str=TEMPLATE, **_sections(name, record, metrics))).strip()
    return f"{text}\n\n{_MARK.format(_digest(text))}\n"


def public_metrics(folder: Path) -> dict[str, Any] | None:
    """Return `metrics.json` of a model folder if it is about videos, with local paths cut to their last part."""
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "data" not in metrics["config"]:
        return None
    config = metrics["config"] = public_config(metrics["config"])
    config["output_dir"], config["data"]["root"] = Path(config["output_dir"]).name, Path(config["data"]["root"]).name
    return metrics


def public_config(value: Any, field: str = "") -> Any:
    """Return JSON content with the absolute paths in its path fields cut to their last part.

    Text fields such as class names and templates stay as they are: the model's answers depend on them.
    """
    if isinstance(value, dict):
        return {key: public_config(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [public_config(item, field) for item in value] if field not in _TEXT_FIELDS else value
    if not isinstance(value, str):
        return value
    if value.startswith("local-dir:") and field in _TOWER_FIELDS:
        return "local-dir:" + Path(value.removeprefix("local-dir:")).name
    return Path(value).name if field in _PATH_FIELDS and Path(value).is_absolute() else value


def is_edited(text: str) -> bool:
    """Return True if a card differs from the output of `card_text`, by the mark at its end."""
    body, _, mark = text.strip().rpartition("\n")
    return mark.strip() != _MARK.format(_digest(body))


def _digest(text: str) -> str:
    return hashlib.sha256("\n".join(line.rstrip() for line in text.strip().splitlines()).encode()).hexdigest()


def _card_data(name: str, record: dict[str, Any], metrics: dict[str, Any] | None) -> ModelCardData:
    backbone = record["backbone"]
    return ModelCardData(
        library_name="clipvid",
        pipeline_tag="video-classification",
        base_model=hub_repository(backbone["name"], backbone["pretrained"]),
        tags=["clipvid", "clip", "video-classification", *_adapters(record)],
        license=record["origin"]["license"].lower() if "origin" in record else None,
        model_name=printable(name) if metrics is not None else None,
        eval_results=None if metrics is None else _eval_results(metrics, _meaningless(record)),
    )


def _eval_results(metrics: dict[str, Any], left_out: Collection[str]) -> list[EvalResult]:
    """Return the card's model-index: accuracies with intervals and data."""
    data = metrics["config"]["data"]
    dataset = printable(data["root"])
    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", dataset),
            dataset_name=dataset,
            dataset_split=printable(_in_words(data["val"])),
            metric_type="mAP" if key == "map" else "accuracy",
            metric_name=title,
            metric_value=metrics[key]["value"],
            metric_args={name: metrics[key][name] for name in ("low", "high", "count")},
        )
        for key, title in _FIGURES.items()
        if key in metrics and key not in left_out
    ]


def _sections(name: str, record: dict[str, Any], metrics: dict[str, Any] | None) -> dict[str, str]:
    model, backbone = record["model"], record["backbone"]
    weights = f" ({backbone['pretrained']})" if backbone["pretrained"] else ""
    left_out = _meaningless(record)
    return {
        "title": markdown_text(name),
        "shell_name": printable(shlex.quote(name)),
        "python_name": printable(json.dumps(name, ensure_ascii=False)),
        "backbone": markdown_code(backbone["name"] + weights),
        "num_frames": str(model["num_frames"]),
        "adapter": markdown_text(_named(model["adapter"])),
        "pooling": markdown_text(_named(model["pooling"])),
        "head": markdown_text(_named(model["head"])),
        "tune": markdown_text(_named(model["tune"])),
        "measured": "Nothing was measured yet." if metrics is None else _measured(metrics, left_out),
        "classes": _classes(record),
        "training": "Not recorded." if metrics is None else _training(metrics["config"]),
        "origin": _origin(record.get("origin")),
        "papers": "\n".join(f"- {paper}" for paper in (*PAPERS, *_papers(record))),
    }


def _origin(origin: dict[str, str] | None) -> str:
    """Return the section about the release that the weights come from, or an empty string."""
    if origin is None:
        return ""
    title, license_name, paper = (markdown_text(origin[key]) for key in ("title", "license", "paper"))
    unknown = "Its license is unknown: ask its authors before use."
    license_line = unknown if license_name == "unknown" else f"Its license: {license_name}."
    return f"## Origin\n\nThe weights come from the release of {title}, {paper}. {license_line}\n\n"


def _meaningless(record: dict[str, Any]) -> set[str]:
    """Return the figures that cannot be below 1."""
    return {"top5"} if len(record["labels"]) <= 5 else set()


def _classes(record: dict[str, Any]) -> str:
    """Return the text about the classes."""
    names = _class_names(record["labels"]) or "Any that are named: `model.set_labels([...])`."
    several = "\n\nA video may have several of them, or none. Each has a probability by itself (sigmoid)."
    return names + (several if record["model"].get("multi_label") else "")


def _class_names(labels: list[str]) -> str:
    """Return the names after their number, so that no name starts a line; empty for none."""
    return f"{len(labels)}: {', '.join(map(markdown_text, labels))}" if labels else ""


def _adapters(record: dict[str, Any]) -> list[str]:
    adapter = record["model"]["adapter"]
    return [] if adapter == "none" else [choice["name"] for choice in adapter]


def _papers(record: dict[str, Any]) -> list[str]:
    """Return a line per citation of the model's parts."""
    model = record["model"]
    choices = [(ADAPTERS, name) for name in _adapters(record)]
    choices += [(registry, _name(model[registry.kind])) for registry in (POOLING, HEADS)]
    choices += [(TUNING, _name(choice)) for choice in model["tune"]]
    return [f"{name}: {paper}" for registry, name in choices for paper in getattr(registry.find(name), "papers", ())]


def _name(choice: Choice) -> str:
    return choice if isinstance(choice, str) else choice["name"]


def _in_words(choice: Any) -> str:
    """Return a source of videos or a protocol as text; a mapping as JSON."""
    return choice if isinstance(choice, str) else json.dumps(choice, ensure_ascii=False)


def _named(choice: Any) -> str:
    """Return a choice, or a list of them, in words: `ila (hidden 64, norm group)`."""
    if isinstance(choice, list):
        return ", ".join(map(_named, choice))
    if isinstance(choice, str):
        return choice
    options = ", ".join(f"{key} {value}" for key, value in choice.items() if key != "name")
    return f"{choice['name']} ({options})" if options else str(choice["name"])


def _measured(metrics: dict[str, Any], left_out: Collection[str]) -> str:
    data = metrics["config"]["data"]
    protocol, val, root = (markdown_text(_in_words(data[key])) for key in ("protocol", "val", "root"))
    unreadable = metrics.get("unreadable", 0)
    counted = f" ({unreadable} unreadable, counted as wrong)" if unreadable else ""
    main, interval = (metrics["map"], "bootstrap") if "map" in metrics else (metrics["top1"], "Wilson")
    lines = [
        f"{protocol} on {val} of {root}, {main['count']} videos{counted}, 95% {interval} intervals.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    for key, value in metrics.items():
        if key in left_out:
            continue
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            lines.append(f"| {markdown_text(key)} | {value['value']:.3f} ({value['low']:.3f}-{value['high']:.3f}) |")
        elif isinstance(value, float):
            lines.append(f"| {markdown_text(key)} | {value:.3f} |")
    return "\n".join(lines)


def _training(config: dict[str, Any]) -> str:
    shown = yaml.safe_dump(config, sort_keys=False).strip()
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"<details><summary>The run's config</summary>\n\n{fence}yaml\n{shown}\n{fence}\n\n</details>"
