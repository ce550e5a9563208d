"""Training hypernetworks: what a run is asked to do, its data, its loop, and what keeps it from going wrong."""

from hnetkit.train.preparing.contact_sheet import write_page
from hnetkit.train.preparing.making import prepare
from hnetkit.train.preparing.review import apply_captions, read_captions, review
from hnetkit.train.rates import schedule
from hnetkit.train.training import sweep, train

__all__ = ["apply_captions", "prepare", "read_captions", "review", "schedule", "sweep", "train", "write_page"]
