"""Search for the largest batch that fits into the memory of a device."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size, gather_object, send_to_device
from torch.utils.data import default_collate

from clipvid import RunError
from clipvid.layers.norm import frozen_bn_statistics
from clipvid.model.trainable import TrainableModel
from clipvid.training.objectives import Objective

_ONEDNN = ("could not create a primitive", "could not execute a primitive")  # ends of its errors without memory


def largest_batch_size(
    accelerator: Accelerator,
    model: TrainableModel,
    objective: Objective,
    item: dict[str, Any],
    batch_size: int,
    earlier: int | None = None,
) -> int:
    """Return the largest divisor of `batch_size` for which a forward and a backward pass succeed on every process.

    A divisor allows accumulation to make up for it exactly. The model is not changed.

    Args:
        accelerator: The Accelerator.
        model: The model.
        objective: The training objective.
        item: One sample of the training set, repeated to fill a batch.
        batch_size: Requested batch size.
        earlier: Result of an earlier session of the run. The result is not larger, so that MixUp and BatchNorm see the
            same batches.

    Raises:
        RunError: A single clip does not fit.
    """
    start = earlier if earlier is not None and batch_size % earlier == 0 else batch_size
    smaller = (size for size in range(start - 1, 0, -1) if batch_size % size == 0)

    def attempt(batch_size: int) -> int:
        batch = send_to_device(default_collate([item] * batch_size), accelerator.device)
        batch["frames"] = model.video_model.normalize(batch["frames"])
        try:
            with accelerator.autocast(), frozen_bn_statistics(model):
                loss, _ = objective(model, batch, 0)
            loss.backward()
        except RuntimeError as error:
            if not str(error).endswith(_ONEDNN):
                raise
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory, and oneDNN {error}") from error
        return batch_size

    search = find_executable_batch_size(
        attempt, starting_batch_size=start, reduce_batch_size_fn=lambda: next(smaller, 0)
    )
    training = model.training
    model.train()
    try:
        size = search()
    except RuntimeError as error:
        if "No executable batch size found" not in str(error):
            raise
        raise RunError(
            "training.auto_find_batch_size: not even one clip fits into the memory of the device; set "
            "training.gradient_checkpointing, or lower model.num_frames"
        ) from error
    finally:
        model.zero_grad()
        model.train(training)
    return int(min(gather_object([size])))
