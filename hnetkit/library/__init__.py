"""`Library`: scan folders, find a network by name or hash, read and write sidecars, link into other programs."""
