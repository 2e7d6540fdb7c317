import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipvid.data.sampling import FrameSampling, dense_indices, keyed_generator, uniform_indices

lengths, counts, seeds = st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**40)


def is_monotone_in_range(indices: torch.Tensor, total: int, num_frames: int) -> bool:
    steps = indices.diff()
    return (
        indices.shape == (num_frames,)
        and indices.dtype == torch.int64
        and bool((steps >= 0).all())
        and int(indices[0]) >= 0
        and int(indices[-1]) < total
    )


def test_keyed_generator_is_a_function_of_the_key():
    def draw(*key: int) -> list[int]:
        return torch.randint(1 << 30, (4,), generator=keyed_generator(*key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(0,), (0, 0), (1,), (1, 0), (0, 1), (-1,), (12, 3), (1, 23), (2**70, 5)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_keyed_generator_separates_adjacent_keys():
    draws = torch.tensor([torch.rand((), generator=keyed_generator(7, 0, index)) for index in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]) < 0.08


def test_keyed_generator_refuses_an_empty_key():
    with pytest.raises(ValueError, match="empty key"):
        keyed_generator()


@given(lengths, counts, seeds)
def test_random_uniform_takes_one_frame_of_each_segment(total: int, num_frames: int, seed: int):
    indices = uniform_indices(total, num_frames, generator=keyed_generator(seed))
    assert is_monotone_in_range(indices, total, num_frames)
    for i, index in enumerate(indices.tolist()):
        assert i * total // num_frames <= index <= (i + 1) * total / num_frames


@given(lengths, counts, st.integers(1, 6))
def test_fixed_uniform_takes_the_offset_of_each_clip(total: int, num_frames: int, num_clips: int):
    for clip in range(num_clips):
        indices = uniform_indices(total, num_frames, clip=clip, num_clips=num_clips)
        assert is_monotone_in_range(indices, total, num_frames)
        exact = [(i + (clip + 0.5) / num_clips) * total / num_frames for i in range(num_frames)]
        assert all(abs(index - point) <= 1 for index, point in zip(indices.tolist(), exact, strict=True))


def test_fixed_uniform_by_hand():
    assert uniform_indices(16, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert uniform_indices(8, 2, clip=0, num_clips=2).tolist() == [1, 5]
    assert uniform_indices(8, 2, clip=1, num_clips=2).tolist() == [3, 7]
    assert uniform_indices(1, 3).tolist() == [0, 0, 0]
    assert uniform_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]


def test_random_uniform_reaches_every_frame():
    seen = torch.cat([uniform_indices(12, 4, generator=keyed_generator(seed)) for seed in range(200)])
    assert set(seen.tolist()) == set(range(12))


@given(lengths, counts, st.integers(1, 20), seeds)
def test_dense_keeps_the_stride_where_it_fits(total: int, num_frames: int, stride: int, seed: int):
    for generator in (None, keyed_generator(seed)):
        indices = dense_indices(total, num_frames, stride, generator=generator)
        assert is_monotone_in_range(indices, total, num_frames)
        if (num_frames - 1) * stride < total:
            assert set(indices.diff().tolist()) <= {stride}
        else:
            assert indices[0] == 0
            assert indices[-1] == total - 1
            assert indices.diff().max() <= stride


def test_dense_windows_by_hand():
    assert dense_indices(11, 3, 2).tolist() == [3, 5, 7]
    starts = [dense_indices(11, 3, 2, clip=clip, num_clips=3)[0].item() for clip in range(3)]
    assert starts == [0, 3, 6]
    assert dense_indices(5, 3, 10).tolist() == [0, 2, 4]
    assert dense_indices(2, 4, 1).tolist() == [0, 0, 0, 1]
    drawn = {dense_indices(11, 3, 2, generator=keyed_generator(seed))[0].item() for seed in range(100)}
    assert drawn == set(range(7))


def test_frame_sampling_is_the_function_it_names():
    assert (
        FrameSampling("uniform", 4).indices(50, clip=1, num_clips=3).equal(uniform_indices(50, 4, clip=1, num_clips=3))
    )
    assert (
        FrameSampling("dense", 4, 3)
        .indices(50, generator=keyed_generator(5))
        .equal(dense_indices(50, 4, 3, generator=keyed_generator(5)))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sparse"}, "'sparse'"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"name": "dense", "stride": 0}, "stride 0"),
        ({"name": "uniform", "stride": 2}, "not used"),
    ],
)
def test_invalid_frame_sampling_is_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FrameSampling(**arguments)


@pytest.mark.parametrize(
    ("total", "clip", "num_clips"),
    [(0, 0, 1), (-3, 0, 1), (5, 1, 1), (5, -1, 2)],
)
def test_impossible_requests_are_refused(total: int, clip: int, num_clips: int):
    with pytest.raises(ValueError, match=r"must be at least 1|expected 0 <= clip"):
        uniform_indices(total, 4, clip=clip, num_clips=num_clips)
    with pytest.raises(ValueError, match=r"must be at least 1|expected 0 <= clip"):
        dense_indices(total, 4, 2, clip=clip, num_clips=num_clips)
