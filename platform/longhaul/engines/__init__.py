"""Inference engines: a batch in, named arrays out, on ONNX Runtime, torch or TensorRT."""
