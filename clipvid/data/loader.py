"""Dataset and loader of clips from a manifest.

Shapes: B clips in a batch, V views of a video (clips x crops), T frames, S pixels. Samples are requested by (epoch,
index), so workers keep no state and all of them return the same sample.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from clipvid.data.batches import EvalBatches, TrainBatches
from clipvid.data.broken import BadVideos
from clipvid.data.collate import collate
from clipvid.data.dataset import VideoDataset as VideoDataset
from clipvid.data.sampling import keyed_generator
from clipvid.data.varying import VaryingRates


class ReportingLoader(DataLoader[Any]):
    """A loader that reports unreadable videos and those of varying frame rate when their batch is taken."""

    bad_videos: BadVideos
    varying: VaryingRates

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        dataset: Any = self.dataset
        for batch in super().__iter__():
            self.bad_videos.add(batch.pop("failures", []))
            varies = batch.pop("varies", None)
            if varies is not None and varies.any():
                self.varying.add(batch["index"][varies].tolist(), lambda index: dataset.manifest.samples[index].path)
            yield batch
        self.varying.count(len(dataset))


def build_loader(
    dataset: Dataset[Any],
    batch_sampler: TrainBatches | EvalBatches,
    num_workers: int,
    bad_videos: BadVideos | None = None,
) -> DataLoader[Any]:
    """Build a loader of batches with `frames`, `label` int64 [B], `index` int64 [B] and `readable` bool [B].

    Frames are uint8 [B, T, 3, S, S] or [B, V, T, 3, S, S]. Training batches also have `epoch` int64 [B] of the clips'
    keys (see `TrainBatches`).

    Workers persist over epochs and compute in one thread each. The samples do not depend on their number. The batch
    sampler already splits the ranks, so do not pass the loader to `accelerator.prepare`. Unreadable videos are reported
    to `bad_videos`, by default only on standard error.
    """
    loader = ReportingLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        **worker_options(num_workers),
    )
    loader.bad_videos, loader.varying = bad_videos or BadVideos(), VaryingRates()
    return loader


def worker_options(num_workers: int) -> dict[str, Any]:
    """Return the options of a DataLoader for its worker processes. Each computes in one thread."""
    return {
        "num_workers": num_workers,
        "prefetch_factor": 2 if num_workers > 0 else None,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available(),
        # Without a generator, the seeds of the workers would advance torch's global state.
        "generator": keyed_generator(0),
    }


def _start_worker(worker: int) -> None:
    """Use one thread, and leave signals to the parent process.

    A scheduler sends its signals to all processes, but the current step still needs its batch. Workers keep the default
    on systems that cannot identify the sender of a signal, such as macOS and Windows.
    """
    torch.set_num_threads(1)
    if sys.platform != "linux" or not hasattr(signal, "sigwaitinfo"):
        return
    parent, signals = multiprocessing.parent_process(), {signal.SIGTERM, signal.SIGUSR1}
    if parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=_obey, args=(parent.pid, signals), daemon=True).start()


def _obey(parent: int | None, signals: set[signal.Signals]) -> None:
    """Exit on SIGTERM from the parent process only."""
    if sys.platform == "linux":
        while True:
            info = signal.sigwaitinfo(signals)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)
