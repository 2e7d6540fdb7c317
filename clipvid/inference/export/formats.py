"""Writing of exported models, see `export_model`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from clipvid import InputError, RunError
from clipvid.data.preprocessing import Preprocessing
from clipvid.files import one_line
from clipvid.inference.export.graph import ExportedGraph, Text, build_graph, check_exportable, frame_range
from clipvid.inference.exported.names import SUFFIXES
from clipvid.inference.exported.onnx_model import OnnxModel
from clipvid.inference.exported.record import KEY, PRECISIONS, ExportRecord
from clipvid.inference.exported.texts import texts_path, write_texts
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import check_option

Format = Literal["onnx", "torch"]
Frames = Literal["fixed", "free"]
Precision = Literal["float32", "float16", "int8"]
RECORD_FILE = "clipvid.json"  # in a .pt2 file
_MAX_ONNX_BYTES = 1_900_000_000  # of a protobuf message: 2 GiB
_QUANTIZED = ["MatMul", "Gemm"]


class Exported(NamedTuple):
    """Result of an export.

    Attributes:
        record: Description stored in the file.
        difference: Largest difference of a probability to the model, on random clips.
        texts: File of text features that was written beside the model, or None.
    """

    record: ExportRecord
    difference: float
    texts: Path | None


def export_model(
    model: VideoCLIP,
    path: str | Path,
    format: Format = "onnx",
    text: Text = "classes",
    frames: Frames = "fixed",
    dtype: Precision = "float32",
) -> Exported:
    """Write a model as one file: from frames uint8 [B, T, S, S, 3] to probabilities float32 [B, K], for any B.

    Args:
        model: The model, which is not changed.
        path: File to write, `.onnx` or `.pt2`. It must not exist.
        format: `onnx`, or `torch` for torch.export.
        text: `classes` stores the classes. With `input`, text features [K, E] are a second input, and the features of
            the labels, if there are some, are written beside the file.
        frames: `fixed` takes clips of the model's number of frames, `free` of other numbers too.
        dtype: Type of the weights. `int8` quantizes the matrix products of an ONNX file.

    Raises:
        InputError: An option is unknown or does not fit the model, the file exists, or a package is missing.
        RunError: The export fails.
    """
    path = Path(path)
    check_export_options(path, format, text, frames, dtype)
    any_frames = frames == "free"
    check_exportable(model, text, any_frames)
    record = _record(model, text, frame_range(model, any_frames), dtype)
    graph = build_graph(model, text, dtype == "float16")
    program = _program(graph, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        aside = Path(folder) / path.name
        if format == "torch":
            torch.export.save(program, aside, extra_files={RECORD_FILE: record.to_json()})
        else:
            _write_onnx(program, record, aside)
        whole = build_graph(model, text, False) if dtype == "float16" else graph
        difference = _largest_difference(whole, record, aside, format)
        texts = texts_path(path) if text == "input" and model.labels else None
        if texts is not None:
            assert graph.model.label_features is not None
            write_texts(texts, model.labels, graph.model.label_features.float().numpy())
        aside.replace(path)
    return Exported(record, difference, texts)


def check_export_options(path: Path, format: str, text: str, frames: str, dtype: str) -> None:
    """Check what can be checked before a model is loaded.

    Raises:
        InputError: See `export_model`.
    """
    check_option("export", "format", format, tuple(SUFFIXES))
    check_option("export", "text", text, ("classes", "input"))
    check_option("export", "frames", frames, ("fixed", "free"))
    check_option("export", "dtype", dtype, PRECISIONS)
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"--output {path}: a file of --format {format} has the suffix {SUFFIXES[format]}")
    for file in (path, texts_path(path)) if text == "input" else (path,):
        if file.exists() or file.is_symlink():
            raise InputError(f"--output {path}: {file} exists; choose another name, or delete it")
    if format == "torch" and dtype == "int8":
        raise InputError("--dtype int8 needs --format onnx")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}: pip install 'clipvid[export]'")


def _record(model: VideoCLIP, text: Text, frames: tuple[int, int], dtype: Precision) -> ExportRecord:
    return ExportRecord(
        classes=tuple(model.labels) if text == "classes" else None,
        embed_dim=model.encoder.tower.embed_dim,
        num_frames=model.num_frames,
        frame_range=frames,
        image_size=model.image_size,
        mean=tuple(model.pixel_mean.flatten().tolist()),
        std=tuple(model.pixel_std.flatten().tolist()),
        preprocessing=model.preprocessing or Preprocessing(),
        precision=dtype,
        multi_label=bool(model.config.multi_label),
    )


def _samples(record: ExportRecord, batch: int, num_frames: int, num_texts: int) -> tuple[Tensor, ...]:
    """Return random inputs of the graph."""
    generator = torch.Generator().manual_seed(batch)
    size = record.image_size
    frames = torch.randint(256, (batch, num_frames, size, size, 3), dtype=torch.uint8, generator=generator)
    texts = () if record.classes is not None else (torch.randn(num_texts, record.embed_dim, generator=generator),)
    return (frames, *texts)


@torch.no_grad()
def _program(graph: ExportedGraph, record: ExportRecord) -> ExportedProgram:
    least, most = record.frame_range
    dims: Any = {0: Dim("batch", min=1)}
    if least < most:
        dims[1] = Dim("frames", min=least, max=most)
    # Sizes of the sample that are equal, or 1, could be taken for fixed ones.
    sample = _samples(record, 2, least if least == most else min(least + 1, most), 3)
    shapes = (dims,) if len(sample) == 1 else (dims, {0: Dim("classes", min=1)})
    try:
        return torch.export.export(graph, sample, dynamic_shapes=shapes)
    except Exception as error:  # adapters of other packages fail in any way
        raise RunError(f"torch.export cannot trace the model: {one_line(error)}") from error


def _write_onnx(program: ExportedProgram, record: ExportRecord, path: Path) -> None:
    from clipvid.inference.export.onnx_operators import TRANSLATIONS

    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _MAX_ONNX_BYTES:
        raise InputError(
            f"the weights have {size:,} bytes, and one ONNX file holds 2 GiB; use --dtype float16 or --format torch"
        )
    names = ["frames"] if record.classes is not None else ["frames", "text"]
    with _quiet():
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=["probabilities"],
                custom_translation_table=TRANSLATIONS,
            )
        except Exception as error:  # see above
            raise RunError(f"torch.onnx cannot convert the model: {one_line(error)}") from error
        assert written is not None
        _name_axes(written.model.graph)
        _remove_traces(written.model)
        written.model.metadata_props[KEY] = record.to_json()
        written.save(path, external_data=False)
        if record.precision == "int8":
            _quantize(path)


def _name_axes(graph: Any) -> None:
    """Name the free axes of the inputs, and the same axes of the output."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in graph.inputs:
        for place, name in enumerate(("batch", "frames") if value.name == "frames" else ("classes",)):
            names[str(value.shape[place])] = name
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape([size if isinstance(size, int) else names.get(str(size)) for size in value.shape])


def _remove_traces(model: Any) -> None:
    """Remove the exporter's notes, which name files of this machine and are as long as the graph."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _quantize(path: Path) -> None:
    """Store the weights of matrix products in 8 bits. Their inputs are quantized while the graph runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, path, op_types_to_quantize=_QUANTIZED, weight_type=QuantType.QInt8, per_channel=True)


@torch.no_grad()
def _largest_difference(graph: ExportedGraph, record: ExportRecord, path: Path, format: Format) -> float:
    """Return the largest difference between the file and the model, for two batches of other sizes than the sample.

    Args:
        graph: The model in float32.
        record: Description of the file.
        path: The file.
        format: See `export_model`.

    Raises:
        RunError: The file gives a probability that is not a number.
    """
    loaded: Any = torch.export.load(path).module() if format == "torch" else OnnxModel(path)
    largest = 0.0
    for batch, num_frames, num_texts in ((1, record.num_frames, 5), (3, record.frame_range[0], 4)):
        inputs = _samples(record, batch, num_frames, num_texts)
        if format == "torch":
            outputs = loaded(*inputs)
        else:
            arrays = [value.numpy() for value in inputs]
            outputs = torch.from_numpy(loaded(*arrays))
        if not outputs.isfinite().all():
            raise RunError(
                f"the exported model gives probabilities that are not numbers: its values exceed the range of "
                f"{record.precision}; use --dtype float32"
                if record.precision != "float32"
                else "the model gives probabilities that are not numbers; its weights may have diverged in training"
            )
        largest = max(largest, float((outputs - graph(*inputs)).abs().max()))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress reports and warnings of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
