"""Signals and Concrete.

While Concrete computes, its own handler answers SIGINT with SIGKILL: no exception, no cleaning up,
and the keys in memory are lost.  Held back, the signal becomes KeyboardInterrupt as soon as
the call returns, and the caller's objects are whole.

A thread's mask is all that Python can set.  Threads that were there before, those of a BLAS or of
torch, may still take the signal, and then the process ends at once; files are safe even so (see
refqnn.fhe.files).  With OPENBLAS_NUM_THREADS=1 numpy starts none.

The first call also takes SIGPIPE, which Python ignores, and answers it with abort: a program that
writes to a pipe whose reader is gone would end in a segmentation fault.  It is given back.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["held_back"]


# signal.signal works in the main thread alone.
_handler_of = ctypes.pythonapi.PyOS_getsig
_handler_of.restype, _handler_of.argtypes = ctypes.c_void_p, [ctypes.c_int]
_set_handler = ctypes.pythonapi.PyOS_setsig
_set_handler.restype, _set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]


@contextmanager
def held_back() -> Iterator[None]:
    """A SIGINT that arrives inside is delivered at the end; SIGPIPE is handled as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    of_pipe = _handler_of(signal.SIGPIPE)
    try:
        yield
    finally:
        _set_handler(signal.SIGPIPE, of_pipe)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
