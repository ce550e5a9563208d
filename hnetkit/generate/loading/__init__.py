"""From a place to a pipeline: diffusers folders, the hub, checkpoints in one file, autoencoders, tokenizers."""
