"""Config class of transformers for clipvid's model folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from clipvid import InputError

_ENTRIES = ("model_type", "format_version", "backbone", "model", "num_classes", "labels", "templates", "files")


class ClipVidConfig(PreTrainedConfig):
    """`config.json` of a model folder, with `id2label` and `num_frames` for transformers."""

    model_type = "clipvid"

    format_version: int | None = None
    backbone: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    num_classes: int | None = None
    labels: list[str] | None = None
    templates: list[str] | None = None
    files: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        count = kwargs.pop("num_labels", None)  # transformers would create a name for each label
        if count is not None and count != len(self.labels or ()):
            raise InputError(f"num_labels={count} does not fit the {len(self.labels or ())} labels of the model")
        if self.labels:
            self.id2label = dict(enumerate(self.labels))
            self.label2id = {name: index for index, name in enumerate(self.labels)}
        if self.is_multi_label:
            self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from the content of `config.json`, without entries that clipvid does not write.

        Raises:
            InputError: The entries do not form a model, see `clipvid.from_pretrained`. The message names the folder.
        """
        from clipvid.hub.folder import check_record
        from clipvid.model.config import ModelConfig
        from clipvid.registry import build_config

        path = Path(str(kwargs.get("name_or_path", "")), "config.json")
        record = check_record(config_dict, path)
        try:
            build_config(ModelConfig, record["model"], str(path))
        except InputError as error:
            message = str(error)
            raise InputError(message if str(path) in message else f"{path}: {message}") from error
        return super().from_dict({key: record[key] for key in (*_ENTRIES, "num_labels") if key in record}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `config.json`, and options of `from_dict` with the name of the model."""
        content, options = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return content, {"name_or_path": str(pretrained_model_name_or_path)} | options

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        from clipvid.hub.strict import read_json

        return read_json(Path(json_file))

    @property
    def is_multi_label(self) -> bool:
        """True if a clip may have several classes."""
        return bool(self.model and self.model.get("multi_label"))

    @property
    def num_frames(self) -> int | None:
        """Number of frames T per clip."""
        return self.model["num_frames"] if self.model else None
