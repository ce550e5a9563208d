"""Bytes to Hypernetwork and back: containers, the allow-list pickle reader, A1111's dict, hnetkit's safetensors."""

from hnetkit.formats.reading import READER_VERSION, load
from hnetkit.formats.writing import save

__all__ = ["READER_VERSION", "load", "save"]
