"""A gallery of the library: a page for one person, where the library is."""
