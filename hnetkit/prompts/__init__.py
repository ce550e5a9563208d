"""What is written in prompts and picture metadata: text in, data out; no torch."""
