"""Assignment solvers: optimality against scipy and brute force, always a permutation, what they refuse."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from clipvid.adapters import matching
from clipvid.adapters.matching import SOLVERS, assign, invert, matched_similarity, matching_gap


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(first, second):
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT


def degenerate(size, seed):
    """Return matrices with ties, by name."""
    values = random(size, size, seed=seed)
    few = random(size, 4, seed=seed)[torch.arange(size) % 3]
    return {
        "ties": values.round(),
        "binary": (values > 1).float(),
        "constant": torch.full((size, size), 0.3),
        "zeros": torch.zeros(size, size),
        "duplicates": cosine(few, few[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]),
        "one row": values[:1].expand(size, size),
        "one column": values[:, :1].expand(size, size),
        "rank one": values[:, :1] * values[:1],
        "huge": 1e30 * values,
        "negative": -values.abs() - 1,
    }


def is_permutation(perm):
    return torch.equal(perm.sort(dim=-1).values, torch.arange(perm.shape[-1]).expand(perm.shape))


def optimum(matrix):
    rows, columns = linear_sum_assignment(matrix.double().numpy(), maximize=True)
    return matrix.double()[rows, columns].sum()


def total_of(matrix, perm):
    return sum(matrix[row, column].double() for row, column in enumerate(perm.tolist()))


def slow_greedy(matrix):
    """Take the best remaining pair, one at a time. Ties go to the smaller (column - row) mod N."""
    size = len(matrix)
    pairs = sorted(
        itertools.product(range(size), repeat=2),
        key=lambda pair: (-matrix[pair].item(), (pair[1] - pair[0]) % size, pair[0]),
    )
    perm: dict[int, int] = {}
    for row, column in pairs:
        if row not in perm and column not in perm.values():
            perm[row] = column
    return torch.tensor([perm[row] for row in range(size)])


def check_optimal(matrix):
    perm = assign(matrix)
    assert perm.dtype == torch.int64
    assert is_permutation(perm)
    best = optimum(matrix)
    torch.testing.assert_close(total_of(matrix, perm), best, rtol=1e-5, atol=1e-5)


# Exact


@pytest.mark.parametrize(("size", "count"), [(1, 20), (2, 20), (7, 30), (49, 40), (196, 24), (256, 4), (576, 2)])
def test_exact_is_optimal_on_random_matrices(size, count):
    matrices = random(count, size, size, seed=size)
    matrices[::2] = cosine(random(count, size, 16, seed=1), random(count, size, 16, seed=2))[::2]
    for matrix, perm in zip(matrices, assign(matrices), strict=True):
        assert is_permutation(perm)
        torch.testing.assert_close(total_of(matrix, perm), optimum(matrix), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (2, 1), (49, 2), (49, 3), (196, 4), (256, 5), (576, 6)])
def test_exact_is_optimal_on_degenerate_matrices(size, seed):
    for matrix in degenerate(size, seed).values():
        check_optimal(matrix)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_exact_beats_every_permutation(size):
    for seed in range(4):
        matrix = random(size, size, seed=seed)
        best = max(total_of(matrix, torch.tensor(p)) for p in itertools.permutations(range(size)))
        torch.testing.assert_close(total_of(matrix, assign(matrix)), best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_go_with_columns_and_not_the_other_way(solver):
    perm = torch.tensor([2, 0, 1])
    similarity = torch.zeros(3, 3)
    similarity[torch.arange(3), perm] = 1.0
    assert torch.equal(assign(similarity, solver), perm)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_leading_axes_are_batches(solver, leading):
    similarity = random(*leading, 6, 6)
    perm = assign(similarity, solver)
    assert perm.shape == (*leading, 6)
    for alone, together in zip(similarity.view(-1, 6, 6), perm.view(-1, 6), strict=True):
        assert torch.equal(assign(alone, solver), together)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_exact_is_independent_of_threads(monkeypatch, threads):
    used = []

    class Pool(matching.ThreadPoolExecutor):
        def __init__(self, max_workers):
            used.append(max_workers)
            super().__init__(max_workers)

    similarity = random(4, 12, 12)
    expected = torch.stack([assign(matrix) for matrix in similarity])
    monkeypatch.setattr(matching, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(assign(similarity), expected)
    assert used == [min(threads, 4)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_and_layout(solver, dtype):
    similarity = random(3, 8, 8).to(dtype).mT
    expected = assign(similarity.double().contiguous(), solver)
    assert torch.equal(assign(similarity, solver), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_matching_has_no_gradient_and_leaves_its_input(solver):
    similarity = random(2, 5, 5).requires_grad_()
    before = similarity.detach().clone()
    assert not assign(similarity, solver).requires_grad
    assert torch.equal(similarity, before)


# Greedy


@pytest.mark.parametrize("size", [1, 2, 7, 49])
def test_greedy_takes_the_best_pair_left_every_time(size):
    matrices = torch.stack([cosine(random(size, 8, seed=seed), random(size, 8, seed=seed + 9)) for seed in range(4)])
    for matrix, perm in zip(matrices, assign(matrices, "greedy"), strict=True):
        assert torch.equal(perm, slow_greedy(matrix))


@pytest.mark.parametrize("name", ["ties", "binary", "constant", "one row", "one column", "rank one"])
def test_greedy_breaks_ties_by_the_offset(name):
    matrix = degenerate(9, 3)[name]
    assert torch.equal(assign(matrix, "greedy"), slow_greedy(matrix))


@pytest.mark.parametrize("size", [3, 49, 196])
def test_greedy_finds_a_clear_matching(size):
    """Both frames have the same patches, shuffled."""
    patches, perm = random(size, 32), torch.randperm(size, generator=torch.Generator().manual_seed(1))
    similarity = cosine(patches, patches[perm])
    assert torch.equal(assign(similarity, "greedy"), invert(perm))
    assert torch.equal(assign(similarity), invert(perm))
    assert matching_gap(similarity, assign(similarity, "greedy")) == 0


def test_greedy_leaves_equal_patches_in_place():
    """Three constant areas do not move. Patches within each are equal."""
    areas = torch.arange(20) % 3
    similarity = (areas[:, None] == areas).float()
    assert torch.equal(assign(similarity, "greedy"), torch.arange(20))


def test_greedy_is_a_permutation_when_rounds_run_out():
    """Each best pair depends on the one before it, so a round takes one pair and 44 of 60 remain at the end."""
    size = 60
    similarity = torch.full((size, size), -1e4)
    similarity[torch.arange(size), torch.arange(size)] = -2.0 * torch.arange(size)
    similarity[torch.arange(size - 1) + 1, torch.arange(size - 1)] = -2.0 * torch.arange(size - 1) - 1
    similarity = similarity[torch.randperm(size, generator=torch.Generator().manual_seed(0))]
    perm = assign(similarity, "greedy")
    assert is_permutation(perm)
    best = slow_greedy(similarity)
    agree = perm == best
    rounds = 2 * 6 + 4
    assert not agree.all()
    late = best >= rounds
    assert agree[~late].all()
    assert torch.equal(perm[late], torch.arange(rounds, size))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_greedy_always_gives_a_permutation(value):
    similarity = random(3, 9, 9)
    similarity[0] = value
    similarity[1, 2:5] = value
    perm = assign(similarity, "greedy")
    assert is_permutation(perm)
    assert torch.equal(perm[2], slow_greedy(similarity[2]))


def test_greedy_does_not_synchronize():
    """Tensors without values cannot be read."""
    similarity = torch.empty(2, 3, 49, 49, device="meta")
    perm = assign(similarity, "greedy")
    assert (perm.device.type, perm.shape, perm.dtype) == ("meta", (2, 3, 49), torch.int64)


# Properties

matrices_of = hnp.arrays(
    "float32",
    st.integers(1, 9).flatmap(lambda size: st.tuples(st.integers(1, 3), st.just(size), st.just(size))),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-100, 100, width=32),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(array=matrices_of)
def test_any_matrices_get_permutations_and_gap(array):
    similarity = torch.from_numpy(array)
    for solver in SOLVERS:
        perm = assign(similarity, solver)
        assert is_permutation(perm)
        assert torch.equal(invert(perm).gather(-1, perm), torch.arange(perm.shape[-1]).expand(perm.shape))
        totals = torch.stack([total_of(*pair) for pair in zip(similarity, perm, strict=True)])
        best = torch.stack([optimum(matrix) for matrix in similarity])
        gap = matching_gap(similarity, perm).double()
        missing = torch.where(gap.isinf(), best - totals, gap * best.abs())
        torch.testing.assert_close(missing, best - totals, rtol=1e-4, atol=1e-3)
        assert not best[gap.isinf()].any()
        if solver == "exact":
            torch.testing.assert_close(totals, best, rtol=1e-6, atol=1e-5)
            assert not matching_gap(similarity, perm).any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_shuffled_rows_and_columns_shuffle_the_matching(solver):
    similarity = random(5, 16, 16)
    rows, columns = (torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    shuffled = assign(similarity[:, rows][:, :, columns], solver)
    assert torch.equal(columns[shuffled], assign(similarity, solver)[:, rows])


def test_gap_is_relative_to_the_optimum():
    similarity = torch.tensor([[[3.0, 2.0], [2.0, 0.0]], [[-1.0, -4.0], [-4.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    perm = torch.tensor([[0, 1], [1, 0], [0, 1]])
    assert torch.equal(matched_similarity(similarity, perm), torch.tensor([3.0, -8.0, 0.0]))
    torch.testing.assert_close(matching_gap(similarity, perm), torch.tensor([0.25, 3.0, 0.0]))
    torch.testing.assert_close(matching_gap(similarity, assign(similarity, "greedy")), torch.tensor([0.25, 0.0, 0.0]))
    assert matching_gap(torch.tensor([[-1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])) == float("inf")


def test_totals_are_summed_in_float32():
    similarity = torch.ones(300, 300, dtype=torch.bfloat16)
    total = matched_similarity(similarity, torch.arange(300))
    assert (total, total.dtype) == (300, torch.float32)


# Errors, compilation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([float("nan")], "1 NaN and 0 infinite of 32 values in matrices 4 x 4"),
        ([float("inf"), -float("inf"), float("nan")], "1 NaN and 2 infinite of 32 values in matrices 4 x 4"),
    ],
)
def test_exact_refuses_nonfinite_values(values, message):
    similarity = random(2, 4, 4)
    similarity[1, 2, : len(values)] = torch.tensor(values)
    with pytest.raises(ValueError, match=re.escape(message)):
        assign(similarity)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("similarity", "actual"),
    [
        (torch.zeros(2, 3, 4), "got [2, 3, 4] of torch.float32"),
        (torch.zeros(4), "got [4] of torch.float32"),
        (torch.zeros(2, 0, 0), "got [2, 0, 0] of torch.float32"),
        (torch.zeros(3, 3, dtype=torch.int64), "got [3, 3] of torch.int64"),
    ],
    ids=["oblong", "vector", "empty", "integers"],
)
def test_only_square_float_matrices_are_accepted(solver, similarity, actual):
    with pytest.raises(
        ValueError, match=re.escape(f"expected floating-point matrices [..., N, N] with N >= 1, {actual}")
    ):
        assign(similarity, solver)


def test_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="matching: solver='sinkhorn' is not one of exact, greedy"):
        assign(random(2, 2), "sinkhorn")


@pytest.mark.parametrize("leading", [(), (2, 3), (2, 0)])
def test_exact_is_a_proper_operator(leading):
    torch.library.opcheck(matching._assign_exact, (random(*leading, 5, 5),))


@pytest.mark.parametrize("solver", SOLVERS)
def test_compiled_graph_stays_whole(solver):
    torch._dynamo.reset()
    similarity = random(2, 7, 7)
    compiled = torch.compile(lambda x: assign(x, solver), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(similarity), assign(similarity, solver))
