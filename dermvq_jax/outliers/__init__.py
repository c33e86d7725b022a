"""Which images are unlike those that a run was trained on, and where."""
