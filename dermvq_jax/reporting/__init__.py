"""Numbers and pictures of a run as one page."""
