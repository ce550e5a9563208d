"""A stack of hypernetworks as weights that other programs load: exact where it can be, fitted where it cannot."""
