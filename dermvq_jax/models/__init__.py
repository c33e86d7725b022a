"""Flax modules: VQ-VAE, quantizers and priors."""
