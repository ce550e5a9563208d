"""How a stack of hypernetworks runs fast on a device: tensors in, tensors out."""
