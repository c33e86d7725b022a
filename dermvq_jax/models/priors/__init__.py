"""Priors over grids of codes, and their sampler."""
