"""Benchmarks: how fast the package is, against the device's limit and the usual scripts."""
