"""Labeled images from all sources in one shape."""
