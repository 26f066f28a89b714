"""Networks as files, for torch.export and ONNX Runtime."""
