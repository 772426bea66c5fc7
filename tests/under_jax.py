"""Processes of their own under JAX, which compile soon rather than well: their networks are small, and run a few times."""

import os

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ENVIRONMENT = {"KERAS_BACKEND": "jax", "XLA_FLAGS": QUICK}


def environment(**more):
    """That of such a process."""
    return {**os.environ, **ENVIRONMENT, **more}
