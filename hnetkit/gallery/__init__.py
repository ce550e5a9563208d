"""A local web page of the library."""
