"""Parsers of prompts and image metadata: text in, data out, without torch."""
