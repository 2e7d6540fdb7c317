"""Search for the number of clips that fit into memory."""

from pathlib import Path

import pytest
import torch

from clipvid import RunError
from clipvid.training.batch_size import largest_batch_size
from clipvid.training.build import build_accelerator
from clipvid.training.config import TrainingConfig


@pytest.mark.parametrize(("earlier", "actual"), [(None, 6), (6, 6), (3, 3), (12, 6), (5, 6), (1, 1)])
def test_search_starts_at_earlier_result(make_model, tmp_path: Path, earlier: int | None, actual: int) -> None:
    def objective(model, batch, epoch):
        if len(batch["frames"]) > 6:
            raise RuntimeError("CUDA out of memory. Tried")
        return next(model.parameters()).sum() * 0 + torch.zeros((), requires_grad=True), {}

    item = {"frames": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "label": 0, "index": 0}
    accelerator = build_accelerator(TrainingConfig(report_to="none"), str(tmp_path))
    model = make_model(labels=["a", "b"])
    assert largest_batch_size(accelerator, model, objective, item, 12, earlier) == actual


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("CUDA out of memory. Tried", RunError),
        ("DefaultCPUAllocator: can't allocate memory", RunError),
        ("shape", RuntimeError),
    ],
)  # fmt: skip
def test_no_fitting_batch_is_an_error(make_model, tmp_path: Path, text: str, raised: type) -> None:
    def objective(model, batch, epoch):
        raise RuntimeError(text)

    item = {"frames": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "label": 0, "index": 0}
    accelerator = build_accelerator(TrainingConfig(report_to="none"), str(tmp_path))
    with pytest.raises(RuntimeError, match="not even one clip fits" if raised is RunError else text) as error:
        largest_batch_size(accelerator, make_model(labels=["a", "b"]), objective, item, 4)
    assert type(error.value) is raised
