"""Training hypernetworks: what a run is asked to do, its data, its loop, and what keeps it from going wrong."""
