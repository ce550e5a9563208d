"""Trains hnetkit's bundled demo: a tiny latent-diffusion pipeline and the hypernetworks on it."""
