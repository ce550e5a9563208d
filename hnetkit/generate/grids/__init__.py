"""Pictures over two or three axes: cells, batches, processes, the sheet and its record."""
