"""A trained run as an object, and what goes in and out of it."""

from dermvq_jax.inference.classification import Classification
from dermvq_jax.inference.model import Model, load
from dermvq_jax.inference.parts import load_part
from dermvq_jax.models.masking import Masked

__all__ = ['Classification', 'Masked', 'Model', 'load', 'load_part']
