"""The library as a page to look at: a local server, and pages that are made here."""
