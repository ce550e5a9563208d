"""From texts and noise to latents: encoding, samplers, noise levels, the loop, and the autoencoder at its ends."""
