"""Control-C and Concrete.

While Concrete computes, its own handler answers SIGINT with SIGKILL: no exception, no cleaning up,
and the keys in memory are lost.  Held back, the signal becomes KeyboardInterrupt as soon as
the call returns, and the caller's objects are whole.

A thread's mask is all that Python can set.  Threads that were there before, those of a BLAS or of
torch, may still take the signal, and then the process ends at once; files are safe even so (see
refqnn.fhe.files).  With OPENBLAS_NUM_THREADS=1 numpy starts none.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["held_back"]


@contextmanager
def held_back() -> Iterator[None]:
    """A SIGINT that arrives inside is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
