"""mteb's and clip-benchmark's own evaluations on local videos, against clipvid's evaluation of the same videos."""

import builtins
import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shake_adapters
from torch.utils.data import DataLoader

import clipvid
from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.inference.clips import ClipReader
from clipvid.inference.public_benchmarks.clip_benchmark_model import ClipBenchmarkModel, ClipBenchmarkVideos
from clipvid.inference.public_benchmarks.mteb_encoder import MtebEncoder
from clipvid.inference.videos import open_source

WORLD = WorldConfig(
    objects=("ball", "box", "star"), motions=("horizontal",), num_frames=8, image_size=48,
    train_per_class=0, val_per_class=4, test_per_class=0,
)  # fmt: skip
REASON = "needs {}: pip install 'clipvid[{}]'"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture(scope="module")
def model() -> clipvid.VideoCLIP:
    """Build a model that knows the objects of the world, with an adapter that reads the order of frames."""
    adapter = {"name": "ila", "hidden": 16}
    return shake_adapters(clipvid.create_model("tiny", adapter=adapter, num_frames=4).eval())


@pytest.fixture(scope="module")
def figures(model, world, tmp_path_factory) -> dict[str, Any]:
    """Return the figures of `clipvid.evaluate`, with the template `single`."""
    model.set_labels(names_of(world), "single")
    model.save_pretrained(tmp_path_factory.mktemp("saved") / "model")
    config = {
        "output_dir": tmp_path_factory.mktemp("evaluation"),
        "model": "tiny",
        "templates": "single",
        "controls": [],
        "zero_shot": False,
        "hardest_clips": 0,
        "data": {"root": world, "num_workers": 0},
    }
    return clipvid.evaluate(model, config).figures


@pytest.fixture(scope="module")
def mteb() -> Any:
    return pytest.importorskip("mteb", reason=REASON.format("mteb", "mteb"))


def names_of(world: Path) -> list[str]:
    return [row["name"] for row in csv.DictReader((world / "classes.csv").open())]


def videos_of(world: Path) -> tuple[list[str], list[int]]:
    rows = list(csv.DictReader((world / "val.csv").open()))
    return [str(world / row["path"]) for row in rows], [int(row["label"]) for row in rows]


def slow_features(model: clipvid.VideoCLIP, videos: list[Any]) -> torch.Tensor:
    """Return features of videos that are read and encoded one by one."""
    reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
    features = []
    for source in videos:
        with open_source(source) as video, torch.no_grad():
            features.append(F.normalize(model.encode_video(reader.read(video)), dim=-1)[0])
    return torch.stack(features)


def metadata(mteb: Any, name: str, kind: str, category: str, modalities: list[str]) -> Any:
    return mteb.TaskMetadata(
        name=name,
        description="Moving objects.",
        dataset={"path": "local/world", "revision": "1"},
        type=kind,
        category=category,
        modalities=modalities,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
    )


def zero_shot_task(mteb: Any, data: dict[str, list[Any]], labels: list[str], **columns: Any) -> Any:
    from mteb.abstasks import AbsTaskZeroShotClassification

    class World(AbsTaskZeroShotClassification):
        input_column_name = "video"

        def load_data(self, **_: Any) -> None:
            rows = datasets.Dataset.from_dict(data)
            for name, feature in ({"video": datasets.Video()} | columns).items():
                rows = rows.cast_column(name, feature)
            self.dataset, self.data_loaded = datasets.DatasetDict(test=rows), True

        def get_candidate_labels(self) -> list[str]:
            return [f"a video of {label}." for label in labels]

    World.metadata = metadata(mteb, "WorldZeroShot", "VideoZeroshotClassification", "v2t", ["video", "text"])
    return World()


def retrieval_task(mteb: Any, queries: datasets.Dataset, corpus: datasets.Dataset, relevant: Any, category: str) -> Any:
    from mteb.abstasks import AbsTaskRetrieval

    class World(AbsTaskRetrieval):
        k_values = (1, 3)

        def load_data(self, **_: Any) -> None:
            split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    World.metadata = metadata(mteb, "WorldRetrieval", "Any2AnyRetrieval", category, ["text", "video"])
    return World()


def scores_of(mteb: Any, encoder: MtebEncoder, task: Any, **options: Any) -> dict[str, float]:
    options = {"cache": None, "co2_tracker": False, "show_progress_bar": False} | options
    encoding = {"batch_size": 5, "show_progress_bar": False}
    (result,) = mteb.evaluate(encoder, [task], encode_kwargs=encoding, **options)
    return result.scores["test"][0]


@pytest.mark.parametrize("stored", ["paths", "bytes"])
def test_mteb_zero_shot_classification_equals_clipvid_evaluate(stored, mteb, model, world, figures):
    videos, labels = videos_of(world)
    sources = videos if stored == "paths" else [{"bytes": Path(video).read_bytes(), "path": None} for video in videos]
    task = zero_shot_task(mteb, {"video": sources, "label": labels}, names_of(world))
    scores = scores_of(mteb, MtebEncoder(model, "me/world"), task)
    assert scores["accuracy"] == figures["top1"]["value"]
    assert scores["recall"] == pytest.approx(figures["mean_class"])
    assert 0.2 < scores["accuracy"] < 1  # neither chance nor certain, so that equality means something


def test_mteb_retrieval_equals_a_slow_search(mteb, model, world):
    videos, labels = videos_of(world)
    names = names_of(world)
    queries = datasets.Dataset.from_dict({"id": [f"q{i}" for i in range(len(names))], "text": names})
    corpus = datasets.Dataset.from_dict({"id": [f"v{i}" for i in range(len(videos))], "video": videos})
    relevant = {f"q{c}": {f"v{i}": 1 for i, label in enumerate(labels) if label == c} for c in range(len(names))}
    task = retrieval_task(mteb, queries, corpus.cast_column("video", datasets.Video()), relevant, "t2v")
    scores = scores_of(mteb, MtebEncoder(model, "me/world"), task)
    with torch.no_grad():
        texts = F.normalize(model.encode_text(names), dim=-1)
    best = (texts @ slow_features(model, videos).T).topk(3).indices
    hits = [[labels[video] == c for video in row] for c, row in enumerate(best.tolist())]
    assert scores["precision_at_3"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert scores["hit_rate_at_1"] == pytest.approx(np.mean([row[0] for row in hits]), abs=1e-4)


def encode(encoder: MtebEncoder, rows: datasets.Dataset, workers: int = 0, name: str = "World") -> np.ndarray:
    class Task:
        pass

    task = Task()
    task.name = name
    loader = DataLoader(rows, batch_size=3, num_workers=workers)
    return encoder.encode(loader, task_metadata=task, hf_split="test", hf_subset="default", show_progress_bar=False)


def test_encoder_features_and_similarities(mteb, model, world):
    videos, _ = videos_of(world)
    encoder = MtebEncoder(model, "me/world")
    rows = datasets.Dataset.from_dict({"id": range(4), "video": videos[:4], "text": names_of(world)[:4]})
    shown = slow_features(model, videos[:4])
    with torch.no_grad():
        texts = F.normalize(model.encode_text(rows["text"]), dim=-1)
    both = F.normalize(shown + texts, dim=-1)
    decoded = rows.cast_column("video", datasets.Video())
    for columns, expected in (["video"], shown), (["text"], texts), (["id", "video", "text"], both):
        for source in (rows, decoded):
            features = encode(encoder, source.select_columns(columns), workers=1)
            np.testing.assert_allclose(features, expected, atol=1e-6)
    assert torch.allclose(encoder.similarity(5 * shown.numpy(), texts), shown @ texts.T, atol=1e-6)
    assert torch.allclose(encoder.similarity(shown[0], texts), (shown @ texts.T)[:1], atol=1e-6)
    assert torch.allclose(encoder.similarity_pairwise(shown, 3 * texts), (shown @ texts.T).diagonal(), atol=1e-6)
    assert isinstance(encoder, mteb.EncoderProtocol)


def test_results_of_other_weights_are_not_taken_from_mtebs_cache(mteb, model, world, tmp_path):
    from mteb.cache import ResultCache

    videos, labels = videos_of(world)
    cache, data = ResultCache(tmp_path), {"video": videos[:6], "label": labels[:6]}
    accuracies = []
    for names in (names_of(world), names_of(world)[::-1]):  # the cache does not see the classes of a task
        task = zero_shot_task(mteb, data, names)
        accuracies.append(scores_of(mteb, MtebEncoder(model, "me/world"), task, cache=cache)["accuracy"])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1e-5)
    changed = shake_adapters(clipvid.create_model("tiny", adapter="sifa", num_frames=4).eval())
    first, second = (MtebEncoder(each, "me/world").mteb_model_meta for each in (model, changed))
    assert first.revision != second.revision
    assert cache.load_task_result("WorldZeroShot", first) is not None
    assert cache.load_task_result("WorldZeroShot", second) is None


def test_mteb_refuses_tasks_that_a_model_cannot_take(mteb, make_model, world):
    videos, labels = videos_of(world)
    encoder = MtebEncoder(make_model("none", names_of(world), head="linear"), "me/linear")
    assert encoder.mteb_model_meta.modalities == ["video"]
    with pytest.raises(ValueError, match=r"me/linear supports \['video'\]"):
        scores_of(mteb, encoder, zero_shot_task(mteb, {"video": videos, "label": labels}, names_of(world)))
    with pytest.raises(InputError, match="World, default, test: the model has no text head"):
        encode(encoder, datasets.Dataset.from_dict({"text": ["a ball"]}))
    with pytest.raises(InputError, match="the columns are audio; expected text, video or both"):
        encode(encoder, datasets.Dataset.from_dict({"audio": [1]}))
    with pytest.raises(InputError, match="name='world': mteb expects organization/model"):
        MtebEncoder(encoder.model, "world")


def test_unreadable_row_is_named(mteb, model, world, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [videos_of(world)[0][0], str(tmp_path / "broken.mp4")]
    rows = datasets.Dataset.from_dict({"video": videos}).cast_column("video", datasets.Video())
    with pytest.raises(VideoError, match=r"row 1 of World, default, test \(.*broken.mp4\): "):
        encode(MtebEncoder(model, "me/world"), rows)
    rows = datasets.Dataset.from_dict({"video": [3]})
    with pytest.raises(InputError, match="row 0 of World, default, test: a video is of type int"):
        encode(MtebEncoder(model, "me/world"), rows)


def test_missing_mteb_is_named(model, monkeypatch):
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "mteb":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'clipvid\[mteb\]'"):
        MtebEncoder(model, "me/world")


@pytest.fixture(scope="module")
def clip_benchmark() -> Any:
    return pytest.importorskip("clip_benchmark.metrics", reason="needs clip-benchmark: pip install clip-benchmark")


@pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
    reason="clip-benchmark 1.6.2 converts an array of one number to a float, which numpy 2.4 refuses",
)
def test_clip_benchmark_evaluation_equals_clipvid_evaluate(clip_benchmark, model, world, figures):
    from clip_benchmark.metrics import zeroshot_classification

    clips = ClipBenchmarkVideos(model, *videos_of(world), names_of(world), "single")
    shown = ClipBenchmarkModel(model)
    loader = DataLoader(clips, batch_size=5)
    evaluated = zeroshot_classification.evaluate(
        shown, loader, shown.tokenizer, clips.classes, clips.templates, "cpu", amp=False
    )
    assert evaluated["acc1"] == figures["top1"]["value"]
    assert evaluated["acc5"] == figures["top5"]["value"]
    assert evaluated["mean_per_class_recall"] == pytest.approx(figures["mean_class"])


def test_clip_benchmark_predictions_equal_clipvid_evaluate(clip_benchmark, model, world, figures):
    from clip_benchmark.metrics import zeroshot_classification as metric

    clips, shown = ClipBenchmarkVideos(model, *videos_of(world), names_of(world), "single"), ClipBenchmarkModel(model)
    classifier = metric.zero_shot_classifier(shown, shown.tokenizer, clips.classes, clips.templates, "cpu", amp=False)
    logits, targets = metric.run_classification(shown, classifier, DataLoader(clips, batch_size=5), "cpu", amp=False)
    assert (logits.argmax(dim=1) == targets).double().mean().item() == figures["top1"]["value"]


def test_clip_benchmark_logits_are_the_models(clip_benchmark, model, world):
    from clip_benchmark.metrics import zeroshot_classification as metric

    model.set_labels(names_of(world), "ensemble")
    clips = ClipBenchmarkVideos(model, *videos_of(world), names_of(world), "ensemble")
    shown = ClipBenchmarkModel(model)
    classifier = metric.zero_shot_classifier(shown, shown.tokenizer, clips.classes, clips.templates, "cpu", amp=False)
    logits, targets = metric.run_classification(shown, classifier, DataLoader(clips, batch_size=5), "cpu", amp=False)
    assert targets.tolist() == videos_of(world)[1]
    with torch.no_grad():
        own = torch.cat([model(clip[None]).logits for clip, _ in clips])
    assert torch.allclose(logits / 100, (own - model.text.logit_bias) / model.text.logit_scale, atol=1e-6)


def test_clip_benchmark_retrieval_equals_a_slow_search(clip_benchmark, model, world):
    from clip_benchmark.datasets.builder import image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    videos, labels = videos_of(world)
    names = names_of(world)
    captions = [[f"a photo of a {names[label]}.", f"clip {i}"] for i, label in enumerate(labels)]
    clips = ClipBenchmarkVideos(model, videos, captions)
    shown = ClipBenchmarkModel(model)
    loader = DataLoader(clips, batch_size=5, collate_fn=image_captions_collate_fn)
    evaluated = zeroshot_retrieval.evaluate(shown, loader, shown.tokenizer, "cpu", amp=False, recall_k_list=[3])
    with torch.no_grad():
        texts = F.normalize(model.encode_text([text for pair in captions for text in pair]), dim=-1)
    best = (slow_features(model, videos) @ texts.T).topk(3).indices
    hits = [video in (row // 2) for video, row in enumerate(best)]
    assert evaluated["text_retrieval_recall@3"] == pytest.approx(np.mean(hits))


def test_clip_benchmark_inputs_are_checked(model, make_model):
    with pytest.raises(InputError, match="no text head with a text tower"):
        ClipBenchmarkModel(make_model("none", ["a", "b"], head="linear"))
    with pytest.raises(InputError, match="1 videos with 2 targets"):
        ClipBenchmarkVideos(model, ["a.mp4"], [0, 1])
    clips = ClipBenchmarkVideos(model, [], [], ["ApplyLipstick", "brush_hair"], ["a {}", "the {}."])
    assert clips.classes == ["Apply Lipstick", "brush hair"]
    assert clips.templates == ["a {c}", "the {c}."]


def test_parts_that_features_do_not_contain_are_warned_about(make_model):
    with pytest.warns(UserWarning, match="video-specific prompts, which features do not contain"):
        ClipBenchmarkModel(make_model("none", ["a", "b"], head={"name": "text", "prompt_layers": 1}))
    with pytest.warns(UserWarning, match="learned context tokens"):
        ClipBenchmarkModel(make_model("none", ["a", "b"], tune=["coop"]))
