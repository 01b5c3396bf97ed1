"""Long-tailed recognition in JAX: decoupled training and classifier re-training."""

__version__ = "0.1.0"
