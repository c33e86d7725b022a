"""Training of a phase: tasks, steps, the loop."""
