"""How many threads native libraries (BLAS, OpenMP) start in each worker, beside the pool's own."""

from __future__ import annotations

import os

__all__ = ["limit_threads", "set_environment"]

_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def set_environment(threads: int) -> None:
    """Before the libraries are loaded: that is when they look."""
    os.environ.update(dict.fromkeys(_VARIABLES, str(threads)))


def limit_threads(threads: int) -> None:
    """In a worker: for what its tasks start; and, where threadpoolctl is installed, for libraries that are loaded."""
    set_environment(threads)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(threads)
