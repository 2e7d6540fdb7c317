import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from clipvid.data import dataset as dataset_module
from clipvid.data.loader import EvalBatches, TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import ClassInfo, Manifest, Sample
from clipvid.data.sampling import FrameSampling, keyed_generator, uniform_indices
from clipvid.data.transforms import eval_transforms, train_transform

SIZE, NUM_VIDEOS = 16, 10


def grey_video(path: Path, frames: int) -> None:
    """Write a video whose frame i has the gray level 10 * i, approximately after encoding."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 32, 24, "yuv420p", 4
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        stream.codec_context.time_base = Fraction(1, 25)
        for i in range(frames):
            picture = np.full((24, 32, 3), 10 * i, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("loader")
    for video in range(NUM_VIDEOS):
        grey_video(root / f"{video}.mp4", frames=9 + video)
    samples = tuple(Sample(f"{video}.mp4", video % 2) for video in range(NUM_VIDEOS))
    return Manifest(samples, (ClassInfo(0, "even"), ClassInfo(1, "odd")), root)


def training_set(manifest: Manifest, seed: int = 3) -> VideoDataset:
    transform = train_transform(SIZE, rand_augment=7, color_jitter=0.3, random_erasing=0.3)
    return VideoDataset(manifest, FrameSampling("uniform", 4), transform, seed=seed, training=True, mirror=[0, 1])


def evaluation_set(manifest: Manifest, **options) -> VideoDataset:
    crops = options.get("crops", 1)
    transforms = eval_transforms(SIZE, num_crops=crops)
    return VideoDataset(manifest, FrameSampling("uniform", 4), transforms, seed=3, training=False, **options)


def levels(frames: torch.Tensor) -> list[int]:
    """Return the frame numbers shown by a clip [T, 3, S, S] of gray frames."""
    return [round(float(frame.float().mean()) / 10) for frame in frames]


def assert_same_batches(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_training_item_depends_on_key_only(manifest: Manifest):
    dataset = training_set(manifest)
    item = dataset[(1, 4)]
    assert item["frames"].shape == (4, 3, SIZE, SIZE)
    assert item["frames"].dtype == torch.uint8
    assert (item["label"], item["index"]) == (0, 4)
    dataset[(7, 2)], torch.rand(3)
    assert torch.equal(training_set(manifest)[(1, 4)]["frames"], item["frames"])
    assert not torch.equal(dataset[(2, 4)]["frames"], item["frames"])
    assert not torch.equal(training_set(manifest, seed=4)[(1, 4)]["frames"], item["frames"])


def test_evaluation_item_shows_the_sampled_frames(manifest: Manifest):
    for index in range(NUM_VIDEOS):
        item = evaluation_set(manifest)[(0, index)]
        assert item["frames"].shape == (1, 4, 3, SIZE, SIZE)
        assert levels(item["frames"][0]) == uniform_indices(9 + index, 4).tolist()
        assert torch.equal(item["frames"], evaluation_set(manifest)[(5, index)]["frames"])


def test_views_are_clip_by_clip(manifest: Manifest):
    frames = evaluation_set(manifest, clips=2, crops=3)[(0, 5)]["frames"]
    assert frames.shape == (6, 4, 3, SIZE, SIZE)
    for view in range(6):
        assert levels(frames[view]) == uniform_indices(14, 4, clip=view // 3, num_clips=2).tolist()


def test_random_evaluation_frames_are_those_of_training_and_keyed(manifest: Manifest):
    """One frame of each segment, another draw for each clip, and the same one in every evaluation."""
    views = evaluation_set(manifest, clips=3, random_frames=True)
    seen = set()
    for index in range(NUM_VIDEOS):
        frames = views[(0, index)]["frames"]
        assert torch.equal(frames, evaluation_set(manifest, clips=3, random_frames=True)[(8, index)]["frames"])
        for clip in range(3):
            generator = keyed_generator(3, index, clip)
            drawn = uniform_indices(9 + index, 4, generator=generator).tolist()
            assert levels(frames[clip]) == drawn
            seen.add((index, *drawn))
    assert len(seen) > 2 * NUM_VIDEOS


def test_evaluation_reads_each_frame_once(manifest: Manifest, monkeypatch: pytest.MonkeyPatch):
    reads = []

    def recorded(source, backend):
        video = open_video(source, backend)
        read = video.read
        video.read = lambda indices: (reads.append(list(indices)), read(indices))[1]
        return video

    open_video = dataset_module.open_video
    monkeypatch.setattr(dataset_module, "open_video", recorded)
    evaluation_set(manifest, clips=5, crops=3)[(0, 0)]
    assert len(reads) == 1
    assert len(set(reads[0])) == len(reads[0]) <= 9


def test_frame_orders(manifest: Manifest):
    forward = uniform_indices(15, 4).tolist()
    shown = {
        order: levels(evaluation_set(manifest, frame_order=order)[(0, 6)]["frames"][0])
        for order in ("forward", "reversed", "shuffled", "single")
    }
    assert shown["forward"] == forward
    assert shown["reversed"] == forward[::-1]
    assert shown["single"] == forward[:1] * 4
    assert sorted(shown["shuffled"]) == forward
    orders = set()
    for index in range(NUM_VIDEOS):
        clip = evaluation_set(manifest, frame_order="shuffled")[(0, index)]["frames"][0]
        again = evaluation_set(manifest, frame_order="shuffled")[(9, index)]["frames"][0]
        assert torch.equal(clip, again)
        orders.add(tuple(np.argsort(levels(clip)).tolist()))
    assert len(orders) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_order": "backwards"}, "'backwards'"),
        ({"clips": 0}, "clips 0"),
        ({"training": True, "clips": 2}, "exactly 1 in training"),
        ({"training": True, "frame_order": "reversed"}, "forward in training"),
        ({"crops": 2}, "1 transforms given for 2 crops"),
    ],
)
def test_impossible_datasets_are_refused(options: dict, message: str, manifest: Manifest):
    arguments = {"seed": 0, "training": False, **options}
    with pytest.raises(ValueError, match=message):
        VideoDataset(manifest, FrameSampling(), eval_transforms(SIZE)[0], **arguments)


def test_workers_do_not_change_the_batches(manifest: Manifest):
    runs = []
    for num_workers in (0, 1, 2):
        loader = build_loader(training_set(manifest), TrainBatches(NUM_VIDEOS, 3, seed=3), num_workers)
        torch.manual_seed(0)
        state = torch.get_rng_state()
        runs.append([batch for _ in range(2) for batch in loader])
        assert torch.equal(torch.get_rng_state(), state)
    assert len(runs[0]) == 6
    assert runs[0][0]["frames"].shape == (3, 4, 3, SIZE, SIZE)
    assert runs[0][0]["label"].dtype == runs[0][0]["index"].dtype == torch.int64
    assert_same_batches(runs[0], runs[1])
    assert_same_batches(runs[0], runs[2])


def test_evaluation_batches_have_views(manifest: Manifest):
    loader = build_loader(evaluation_set(manifest, clips=2), EvalBatches(NUM_VIDEOS, 4), 0)
    batches = list(loader)
    assert [tuple(batch["frames"].shape) for batch in batches] == [
        (4, 2, 4, 3, SIZE, SIZE),
        (4, 2, 4, 3, SIZE, SIZE),
        (2, 2, 4, 3, SIZE, SIZE),
    ]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(NUM_VIDEOS))


def test_resume_within_an_epoch(manifest: Manifest):
    loader = build_loader(training_set(manifest), TrainBatches(NUM_VIDEOS, 2, seed=3, accumulation=2), 0)
    whole = [batch for _ in range(2) for batch in loader]
    resumed = TrainBatches(NUM_VIDEOS, 2, seed=3, accumulation=2, epoch=0, step=1)
    loader = build_loader(training_set(manifest), resumed, 1)
    assert len(resumed) == 2
    assert_same_batches([batch for _ in range(2) for batch in loader], whole[2:])
    resumed.set_position(1, 1)
    assert_same_batches(list(loader), whole[6:])


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1), (1, 2), (2, 1)])
def test_step_clips_are_independent_of_processes(world_size: int, accumulation: int):
    per_device = 8 // (world_size * accumulation)
    ranks = [
        list(TrainBatches(35, per_device, seed=5, world_size=world_size, rank=rank, accumulation=accumulation, epoch=2))
        for rank in range(world_size)
    ]
    reference = list(TrainBatches(35, 8, seed=5, epoch=2))
    assert len(reference) == 35 // 8
    for step, expected in enumerate(reference):
        micro_batches = [
            ranks[rank][step * accumulation + micro] for micro in range(accumulation) for rank in range(world_size)
        ]
        assert list(itertools.chain(*micro_batches)) == expected
    indices = [index for batch in reference for _, index in batch]
    assert len(set(indices)) == len(indices)
    assert {epoch for batch in reference for epoch, _ in batch} == {2}


def test_epochs_differ_and_follow_each_other():
    batches = TrainBatches(20, 5, seed=1)
    first, second = list(batches), list(batches)
    assert batches.epoch == 2
    assert [[index for _, index in batch] for batch in first] != [[index for _, index in batch] for batch in second]
    assert sorted(index for batch in second for _, index in batch) == list(range(20))
    assert list(TrainBatches(20, 5, seed=1, epoch=1)) == second
    assert list(TrainBatches(20, 5, seed=1, epoch=0, step=4)) == second
    assert list(TrainBatches(20, 5, seed=2)) != first
    interrupted = TrainBatches(20, 5, seed=1)
    next(iter(interrupted))
    assert list(interrupted) == first


@pytest.mark.parametrize(("total", "world_size", "batch_size"), [(10, 1, 4), (10, 3, 2), (2, 4, 3), (0, 2, 1)])
def test_evaluation_ranks_partition_samples(total: int, world_size: int, batch_size: int):
    samplers = [EvalBatches(total, batch_size, world_size=world_size, rank=rank) for rank in range(world_size)]
    ranks = [[[index for _, index in batch] for batch in sampler] for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in ranks]
    alone = [[index for _, index in batch] for batch in EvalBatches(total, batch_size)]
    assert sorted(batch for batches in ranks for batch in batches) == alone
    assert [index for batch in alone for index in batch] == list(range(total))


def test_skipped_batches_do_not_change_others():
    samplers = [EvalBatches(11, 2, world_size=2, rank=rank) for rank in range(2)]
    for sampler in samplers:
        sampler.skip([2, 8])
    ranks = [[[index for _, index in batch] for batch in sampler] for sampler in samplers]
    assert ranks == [[[0, 1], [6, 7]], [[4, 5], [10]]]
    assert [len(sampler) for sampler in samplers] == [2, 2]


def test_impossible_batches_are_refused():
    with pytest.raises(
        ValueError, match=r"15 training videos do not fill one global batch of 16 .*accumulation_steps 2"
    ):
        TrainBatches(15, 4, seed=0, world_size=2, accumulation=2)
    with pytest.raises(ValueError, match="rank is 2 of world_size 2"):
        TrainBatches(15, 4, seed=0, world_size=2, rank=2)
    with pytest.raises(ValueError, match=r"step in 0\.\.3"):
        TrainBatches(15, 4, seed=0, step=4)
    with pytest.raises(ValueError, match="per_device_batch is 0"):
        TrainBatches(15, 0, seed=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        EvalBatches(15, 0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_repeated_sampling_shows_each_video_as_different_clips(world_size: int):
    ranks = [
        list(TrainBatches(10, 4 // world_size, seed=1, world_size=world_size, rank=rank, repeats=2, epoch=3))
        for rank in range(world_size)
    ]
    assert [len(batches) for batches in ranks] == [5] * world_size
    keys = [key for step in zip(*ranks, strict=True) for batch in step for key in batch]
    assert keys[::2] == [(6, index) for _, index in keys[::2]]
    assert keys[1::2] == [(7, index) for _, index in keys[::2]]
    assert sorted(index for _, index in keys[::2]) == list(range(10))
    assert TrainBatches(10, 4, seed=1, repeats=2).steps_per_epoch == 5


def test_mirrored_clips_take_the_label_of_the_mirror(manifest: Manifest):
    def items(mirror: list[int | None] | None) -> list[dict]:
        transform = train_transform(SIZE, scale=(1.0, 1.0))
        dataset = VideoDataset(manifest, FrameSampling("uniform", 4), transform, seed=3, training=True, mirror=mirror)
        return [dataset[(epoch, index)] for epoch in range(8) for index in range(NUM_VIDEOS)]

    plain, exchanged, own, fixed = (items(mirror) for mirror in (None, [1, 0], [0, 1], [None, None]))
    turned = [a["label"] != b["label"] for a, b in zip(plain, exchanged, strict=True)]
    assert 25 < sum(turned) < 55
    for a, b, c, d, turn in zip(plain, exchanged, own, fixed, turned, strict=True):
        assert torch.equal(b["frames"], a["frames"].flip(-1) if turn else a["frames"])
        assert torch.equal(c["frames"], b["frames"])
        assert torch.equal(d["frames"], a["frames"])
        assert a["label"] == c["label"] == d["label"]
