"""Training hypernetworks: what a run is asked to do, its data, its loop, and what keeps it from going wrong."""

from hnetkit.train.api import sweep, train
from hnetkit.train.preparing.folder import prepare
from hnetkit.train.preparing.review import apply_captions, read_captions, review, write_page
from hnetkit.train.schedules import schedule

__all__ = ["apply_captions", "prepare", "read_captions", "review", "schedule", "sweep", "train", "write_page"]
