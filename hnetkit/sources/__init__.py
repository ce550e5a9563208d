"""Where hypernetworks come from: Civitai, Hugging Face, a plain address. HTTP lives only here."""
