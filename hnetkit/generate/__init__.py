"""Loading a model, drawing pictures with a stack of hypernetworks, and comparing them in a grid."""
