"""Export of models to files that run without clipvid: ONNX and torch.export."""
