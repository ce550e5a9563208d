"""`Stack` and `Strength`, a stack on a diffusers UNet (on and off, bit-exactly), its plan in words, and its timing."""
