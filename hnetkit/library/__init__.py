"""The library on disk against the registry: scanning, checking again, and finding a network by its name."""
