"""Grids of images over up to three axes: the spec, its cells, batches, the sheet and its record."""
