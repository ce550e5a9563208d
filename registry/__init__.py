"""What hypernetworks do I have, where were they, and what do I know of them? Rows in SQLite, no model files."""
