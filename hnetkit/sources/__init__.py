"""Fetching from Civitai, Hugging Face and plain URLs; all HTTP but huggingface_hub's own is here."""
