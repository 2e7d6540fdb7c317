"""The search for the number of clips that fit into memory."""

from pathlib import Path

import pytest
import torch

from clipvid import RunError
from clipvid.training.batch_size import largest_batch_size
from clipvid.training.build import build_accelerator
from clipvid.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("CUDA out of memory. Tried", RunError),
        ("DefaultCPUAllocator: can't allocate memory", RunError),
        ("shape", RuntimeError),
    ],
)  # fmt: skip
def test_no_batch_that_fits_is_one_clear_error(make_model, tmp_path: Path, text: str, raised: type) -> None:
    def objective(model, batch, epoch):
        raise RuntimeError(text)

    item = {"frames": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "label": 0, "index": 0}
    accelerator = build_accelerator(TrainingConfig(report_to="none"), str(tmp_path))
    with pytest.raises(RuntimeError, match="not even one clip fits" if raised is RunError else text) as error:
        largest_batch_size(accelerator, make_model(labels=["a", "b"]), objective, item, 4)
    assert type(error.value) is raised
