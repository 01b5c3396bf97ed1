"""Float64 in tests: ``with enable_x64(True)``, which jax 0.7 has in another module."""

import jax

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
