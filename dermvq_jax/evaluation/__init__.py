"""How good a trained run is, in numbers."""
