"""Training of hypernetworks: prepare images, review captions, train, sweep over settings."""

from hnetkit.train.api import sweep, train
from hnetkit.train.preparing.folder import prepare
from hnetkit.train.preparing.review import apply_captions, read_captions, review, write_page
from hnetkit.train.schedules import schedule

__all__ = ["apply_captions", "prepare", "read_captions", "review", "schedule", "sweep", "train", "write_page"]
