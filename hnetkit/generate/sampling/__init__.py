"""From prompts and noise to latents: encoding, samplers, schedulers, noise, the loop, and the autoencoder."""
