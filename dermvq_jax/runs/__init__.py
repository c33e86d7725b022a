"""A run on disk: what lies where, checkpoints, logs, checks."""
