"""A stack of hypernetworks on a UNet: on and off, bit-exactly."""
