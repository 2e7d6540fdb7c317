"""Lists are parsed once, and videos are opened or read only when something needs them."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipvid.data.config import DataConfig
from clipvid.data.lists import sources
from clipvid.data.manifest import load_manifest
from clipvid.data.splits import load_splits
from clipvid.data.synthetic import world
from clipvid.experiments.config import EvaluateConfig, Recipe
from clipvid.experiments.run import load_videos
from clipvid.training import pretrain
from clipvid.training.pretrain_config import PretrainConfig

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("load", ["splits", "evaluation", "training without labels"])
@pytest.mark.parametrize("classes", [None, "classes.csv"], ids=["null", "missing default"])
def test_lists_are_parsed_once_if_classes_come_from_train(tmp_path: Path, monkeypatch, load, classes):
    (tmp_path / "train.csv").write_text("path,label\na.mp4,walk\nb.mp4,run\n")
    (tmp_path / "val.csv").write_text("path,label\nc.mp4,walk\n")
    data, parsed, read_table = (
        DataConfig(str(tmp_path), classes=classes, check_files=False),
        Counter(),
        sources.read_table,
    )

    def counted(file, *args):
        parsed[file.name] += 1
        return read_table(file, *args)

    monkeypatch.setattr(sources, "read_table", counted)
    train, val = {
        "splits": lambda: load_splits(data),
        "evaluation": lambda: load_videos(EvaluateConfig(data=data, recipe=Recipe())),
        "training without labels": lambda: pretrain.load_videos(PretrainConfig(data=data)),
    }[load]()
    assert (len(train), len(val), val.class_names) == (2, 1, ["run", "walk"])
    assert [sample.label for sample in val.samples] == [1]
    assert parsed == {"train.csv": 1, "val.csv": 1}


def test_listing_a_data_set_reads_no_bytes_of_its_videos(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    videos = [{"bytes": bytes([n]) * MEBIBYTE, "path": f"{n}.mp4"} for n in range(16)]
    table = pa.table({"video": videos, "label": [f"class {n % 2}" for n in range(16)]})
    pq.write_table(table, tmp_path / "data.parquet")
    source = {"name": "datasets", "path": "parquet", "data_files": str(tmp_path / "data.parquet")}
    load_manifest(tmp_path, source, None)  # converts the file to the library's own format
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    manifest = load_manifest(tmp_path, source, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MEBIBYTE
    assert pa.total_allocated_bytes() - arrow < MEBIBYTE
    assert [manifest.video(n) for n in (3, 15)] == [videos[3]["bytes"], videos[15]["bytes"]]


def test_a_built_world_is_opened_once(tmp_path: Path, monkeypatch):
    config = world.WorldConfig(train_per_class=1, val_per_class=1, test_per_class=0, num_frames=2, image_size=32)
    root = world.build_world(config, tmp_path, progress=False)
    opened, av_open = [], av.open

    def counted(file, mode="r", **options):
        opened.append((Path(file).name, mode))
        return av_open(file, mode, **options)

    monkeypatch.setattr(av, "open", counted)
    world.build_world(config, root, progress=False)
    videos = sorted(root.glob("*/*/*.mp4"))
    assert len(opened) == len(videos)
    opened.clear()
    world.build_world(config, root, progress=False)
    assert opened == []
    content = videos[0].read_bytes()
    videos[0].write_bytes(content[:-200])
    world.build_world(config, root, progress=False)
    assert [mode for _, mode in opened] == ["r", "w"]
    assert videos[0].read_bytes() == content
    assert json.loads((root / "world.json").read_text())["num_frames"] == 2
