"""Formats that run a classifier without this package: ONNX, exported programs, plain classes."""
