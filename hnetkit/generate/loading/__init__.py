"""Loading a pipeline from a diffusers folder, the hub or a checkpoint, with the files that prompts add to it."""
