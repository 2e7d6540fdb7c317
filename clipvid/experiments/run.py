"""Evaluation of one model under a protocol, the core of `clipvid evaluate`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from clipvid.adapters import AdapterSpec, resolve_adapters
from clipvid.data.dataset import FrameOrder
from clipvid.data.manifest import Manifest
from clipvid.data.splits import check_leaks, eval_loader, load_split, load_splits
from clipvid.evaluation.conditions import ALL_CONTROLS as ALL_CONTROLS
from clipvid.evaluation.conditions import FORWARD, ZERO_SHOT, Condition
from clipvid.evaluation.conditions import Control as Control
from clipvid.evaluation.loop import PredictionCache, ViewScores, predict_views
from clipvid.evaluation.results import (
    PREDICTIONS,
    ConditionScores,
    Group,
    group_figures,
    metrics_record,
    read_predictions,
    write_predictions,
)
from clipvid.evaluation.weight_space import (
    WeightSpace,
    check_texts_differ,
    model_key,
    set_descriptions,
    zero_shot_model,
)
from clipvid.experiments.config import EvaluateConfig, extend_evaluation
from clipvid.experiments.config import Recipe as Recipe
from clipvid.experiments.protocol_report import write_report
from clipvid.experiments.protocols import Holdout, LeaveOneGroupOut, Part, build_protocol
from clipvid.experiments.recipes import announce_small_sets, finetune_config
from clipvid.files import hash_file, write_json
from clipvid.hub.folder import trained_labels, weights_hash
from clipvid.hub.loading import is_saved, load_model
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.prompts import resolve_templates
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.config_files import config_record
from clipvid.runs.output_folder import OtherRunError, check_output, prepare_output_dir
from clipvid.runs.record import recorded
from clipvid.training.features import open_features
from clipvid.training.finetune import finetune
from clipvid.training.unreadable import OpenedVideos


def title_of(config: EvaluateConfig) -> str:
    """Return the name of the model in reports."""
    if config.name is not None:
        return config.name
    if config.recipe is None:
        return config.model
    return trained_name(config.recipe.model.adapter)


def trained_name(adapter: AdapterSpec) -> str:
    """Return the name in reports of a model with this adapter that was fine-tuned."""
    return f"{' + '.join(resolve_adapters(adapter)) or 'frames averaged'}, fine-tuned"


def evaluate_protocol(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Measure a model and write `metrics.json`, `predictions.parquet` and `report.html` to `config.output_dir`.

    Scores and models of an interrupted or finished evaluation with the same config and weights are reused. The controls
    and alphas of a finished evaluation are kept, and new ones are added.

    Returns:
        The content of metrics.json, with the figures under `groups`, on all processes.

    Raises:
        OtherRunError: The folder contains an evaluation with another config, such as another model.
    """
    output, protocol = Path(config.output_dir), build_protocol(config.protocol or config.data.protocol)
    earlier = _finished_config(output) if accelerator.is_main_process else {}
    config = extend_evaluation(config, broadcast_object_list([earlier])[0])
    with accelerator.main_process_first():
        train, test = load_videos(config)
    if train is not None:
        check_leaks(config.data, train, test, accelerator)
    if accelerator.is_main_process:
        _check_output(output, config)
    parts = protocol.parts(train, test, config.recipe is not None)
    inputs = evaluation_inputs(config, train, test)
    run = _Run(config, accelerator, output)
    if config.recipe is None:
        run.load(parts[0])  # a model that cannot be loaded leaves no files
    else:
        announce_small_sets(config, parts, accelerator)
    if accelerator.is_main_process:
        prepare_output_dir(output, config)
    accelerator.wait_for_everyone()
    with recorded(output, accelerator, config_record(config), inputs):
        condition_scores = [scores for part in parts for scores in run.score(part)]
        names = list(dict.fromkeys(scores.group for scores in condition_scores))
        groups = [Group.of(name, [scores for scores in condition_scores if scores.group == name]) for name in names]
        figures = {group.name: group_figures(group, config.average, run.trained_on[group.name]) for group in groups}
        metrics: dict[str, Any] = {"name": title_of(config), "groups": figures} | protocol.summary(parts, figures)
        metrics |= {"processes": accelerator.num_processes, "config": config_record(config)}
        if accelerator.is_main_process:
            write_predictions(output / PREDICTIONS, condition_scores, config.average)
            write_report(config, title_of(config), run.model, metrics, groups, accelerator)
            write_json(output / "metrics.json", metrics_record(metrics))
            PredictionCache(output / "partial", "").clear()
        accelerator.wait_for_everyone()
    return metrics


def _finished_config(output: Path) -> dict[str, Any]:
    """Return the config in `output`/metrics.json, or an empty dict if it is absent or damaged."""
    try:
        return dict(json.loads((output / "metrics.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check_output(output: Path, config: EvaluateConfig) -> None:
    """Check the output folder, and suggest another one if it contains another evaluation."""
    try:
        check_output(output, config)
    except OtherRunError as error:
        parts = (
            [config.model, config.pretrained] if config.name is None and config.recipe is None else [title_of(config)]
        )
        name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts))).strip("-.") or "model"
        raise OtherRunError(f"{error} For example: --output_dir {output / name}") from None


def load_videos(config: EvaluateConfig) -> tuple[Manifest | None, Manifest]:
    """Return training videos (or None if unused by the protocol) and test videos. Build the synthetic world first."""
    protocol = build_protocol(config.protocol or config.data.protocol)
    reads_train = config.recipe is not None or protocol.train_is_asked
    return load_splits(config.data) if reads_train else (None, load_split(config.data, "val"))


def evaluation_inputs(config: EvaluateConfig, train: Manifest | None, test: Manifest) -> dict[str, str]:
    """Return hashes of the lists of videos, and of the files of model, templates and descriptions if they are used.

    Raises:
        OSError: A file does not exist.
        InputError: A file is invalid.
    """
    hashes = {"val": test.hash} | ({"train": train.hash} if train is not None else {})
    start = config.recipe.model.init_from if config.recipe is not None else None
    saved = config.model if config.recipe is None and is_saved(config.model) else start
    if saved is not None:
        hashes["model"] = weights_hash(saved)
    if config.templates is not None:
        hashes["templates"] = hashlib.sha256(json.dumps(resolve_templates(config.templates)).encode()).hexdigest()
    if config.descriptions is not None:
        hashes["descriptions"] = hash_file(Path(config.descriptions))
    return hashes


class _Run:
    """One evaluation: its models, and the cached scores by key."""

    def __init__(self, config: EvaluateConfig, accelerator: Accelerator, output: Path) -> None:
        self.config, self.accelerator, self.output = config, accelerator, output
        stored = read_predictions(output / PREDICTIONS) if accelerator.is_main_process else {}
        stored = {key: scores for key, scores in stored.items() if scores.readable.all()}  # others are computed again
        self.scores: dict[str, ViewScores] = broadcast_object_list([stored])[0]
        self.trained_on: dict[str, list[str]] = {}
        self.made: set[str] = set()
        self._opened = OpenedVideos()
        self.title = title_of(config)
        self.model: VideoCLIP
        self._loaded: tuple[Part, tuple[VideoCLIP, list[str]]] | None = None
        self._features: FeatureCache | None = None  # of the model whose features it holds
        self._moves_weights = False  # an ensemble replaces weights in place, and no key of features sees that

    def load(self, part: Part) -> None:
        """Load the model of a part in advance."""
        self._loaded = part, self._model(part)

    def score(self, part: Part) -> list[ConditionScores]:
        """Return the scores of a part's model on its videos, under every condition."""
        loaded, self._loaded = self._loaded, None
        self.model, self.trained_on[part.group] = loaded[1] if loaded and loaded[0] is part else self._model(part)
        model = self.model
        plain = not model.trained_state() and not model.encoder.adapters()
        space = WeightSpace(model) if not plain and (self.config.alpha != 1 or self.config.sweep) else None
        self._moves_weights = space is not None
        if space is not None:
            self._name(space.at(self.config.alpha))
        check_texts_differ(model)
        key = model_key(model)
        conditions = [FORWARD, *map(Condition, self.config.controls)]
        condition_scores = [self._score(part, model, key, condition) for condition in conditions]
        if self.config.zero_shot and not plain:
            condition_scores += self._zero_shot(part, model)
        if space is not None:
            for alpha in self.config.sweep:
                self._name(space.at(alpha))
                condition_scores.append(self._score(part, model, model_key(model), Condition(alpha=alpha)))
        return condition_scores

    def _model(self, part: Part) -> tuple[VideoCLIP, list[str]]:
        """Return the model of a part with its class names set, and the class names of its training."""
        config, names = self.config, part.test.class_names
        if config.recipe is None:
            frames = None if is_saved(config.model) else config.num_frames
            model = load_model(config.model, config.pretrained, frames, names, config.templates)
            saved = model.trained_state()
            self._compare_sampling(model)
            trained_on = trained_labels(config.model) if saved else []
            if saved:
                self._compare_videos(names, trained_on)
        else:
            assert part.train is not None
            folder, trained_on = self.output / part.run, part.train.class_names
            if part.run not in self.made:
                recipe = finetune_config(config, part, folder, self.accelerator.num_processes)
                finetune(recipe, part.train, part.test, self.accelerator, folder, self._opened)
                self.accelerator.wait_for_everyone()
                self.accelerator.free_memory()
                self.made.add(part.run)
            model = load_model(str(folder), labels=names, templates=config.templates)
        return self._ready(model), trained_on

    def _compare_sampling(self, model: VideoCLIP) -> None:
        """Warn if a saved model was trained with another sampling or number of frames than this evaluation has."""
        trained, asked = model.preprocessing, self.config.data.preprocessing
        if self.config.num_frames not in (EvaluateConfig.num_frames, model.num_frames):
            self.accelerator.print(
                f"warning: num_frames={self.config.num_frames} is for a plain CLIP; {self.config.model} takes "
                f"{model.num_frames} frames"
            )
        if trained is not None and trained != asked:
            self.accelerator.print(
                f"warning: {self.config.model} was trained on clips sampled as {trained.record()}, but is evaluated on "
                f"clips sampled as {asked.record()}; see data.sampling, data.stride and data.resize"
            )

    def _compare_videos(self, names: list[str], trained_on: list[str]) -> None:
        """Warn if a saved model is measured on its training videos, or if some of its classes do not compete."""
        config = self.config
        protocol = build_protocol(config.protocol or config.data.protocol)
        if isinstance(protocol, LeaveOneGroupOut):
            self.accelerator.print(
                f"warning: without a recipe nothing is trained, and {config.model} is measured on data.train, too. "
                "Videos that it was trained on make it look better; protocol: holdout measures data.val alone"
            )
        if isinstance(protocol, Holdout) and set(names) < set(trained_on):
            self.accelerator.print(
                f"warning: only the {len(names)} classes of the videos compete, out of {len(trained_on)} that "
                f"{config.model} was trained on; data.classes or data.train gives all of them"
            )

    def _ready(self, model: VideoCLIP) -> VideoCLIP:
        self._name(model)
        if self.config.torch_compile:
            model.encoder.compile_blocks()
        return model.to(self.accelerator.device)

    def _name(self, model: VideoCLIP) -> None:
        if self.config.descriptions is not None:
            set_descriptions(model, model.labels, self.config.descriptions)

    def _zero_shot(self, part: Part, model: VideoCLIP) -> list[ConditionScores]:
        """Return the scores of the plain CLIP, or an empty list with a warning if it cannot be loaded."""
        try:
            plain = zero_shot_model(model)
        except (ValueError, RuntimeError, OSError) as error:
            self.accelerator.print(f"zero-shot CLIP is not evaluated: {error}")
            return []
        self._ready(plain)
        return [self._score(part, plain, model_key(plain), ZERO_SHOT)]

    def _score(self, part: Part, model: VideoCLIP, model_hash: str, condition: Condition) -> ConditionScores:
        """Return the scores of a model on the videos of a part, from the cache or measured."""
        config, test, control = self.config, part.test, condition.control
        bag = control == "bag"
        order: FrameOrder = "forward" if control is None or control == "bag" else control
        sampling = {
            name: getattr(config.data, name) for name in ("sampling", "stride", "resize", "test_clips", "test_crops")
        }
        texts = Path(config.descriptions).read_text() if config.descriptions is not None else ""
        what = [model_hash, test.hash, sampling, order, bag, texts]
        what += [config.batch_size, config.mixed_precision, config.torch_compile]
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        if key not in self.scores:
            self.accelerator.print(f"{self.title}, {part.group}, {condition}: {len(test)} videos")
            cache = PredictionCache(self.output / "partial" / key[:16], key)
            features = None if bag else self._features_of(model)
            stored = None if features is None else features.stored
            loader = eval_loader(
                config.data, model, test, self.accelerator, config.batch_size, order, self.output, stored
            )
            self.scores[key] = predict_views(self.accelerator, model, loader, cache, bag, features)
        ranks_only = test.is_multi_label and not model.config.multi_label
        return ConditionScores(part.group, condition, key, test, self.scores[key], part.places, ranks_only)

    def _features_of(self, model: VideoCLIP) -> FeatureCache | None:
        """Return the cache of the frozen part of a model; None if the recipe has none."""
        if self.config.recipe is None or self._moves_weights:
            return None
        if self._features is None or self._features.model is not model:
            training = self.config.recipe.training
            # Training has printed the place.
            self._features = open_features(training, self.config.data, model, self.accelerator, announce=False)
        return self._features
