"""Preparation of training images: sizes, crops, captions, and their review."""
