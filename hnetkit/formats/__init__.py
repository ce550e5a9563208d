"""File formats of hypernetworks: `load` and `save`, containers, the allow-list pickle reader, A1111's dict."""

from hnetkit.formats.reading import READER_VERSION, load
from hnetkit.formats.writing import save

__all__ = ["READER_VERSION", "load", "save"]
