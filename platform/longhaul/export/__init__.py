"""From a checkpoint to a registered model: ONNX, TensorRT, parity, the registry."""
