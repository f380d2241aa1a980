"""A process that has used Concrete still ends with its own status."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from refqnn import IntFormat, Linear, Lookup, Network, Node, fhe

squares = Lookup(np.arange(7)[None] ** 2, -3, IntFormat(6, signed=False))
nodes = [Node("sum", Linear(np.array([[1, -1]]))), Node("squares", squares)]
network = Network(nodes, input_shape=(2,), input_format=IntFormat(2, signed=False))
circuit = fhe.compile(network, global_p_error=1e-9)
codes = np.array([[3, 1]])
assert {action} == [[25]]
{ending}
"""


SIMULATED, ENCRYPTED = "circuit.simulate(codes)", "circuit.execute(codes)"
SLOWLY = pytest.param(ENCRYPTED, marks=pytest.mark.slow)
EXIT, ERROR = ("raise SystemExit(3)", 3), ("raise OSError", 1)


@pytest.mark.parametrize(
    ("action", "ending", "status"),
    [
        (ENCRYPTED, *EXIT),
        pytest.param(SIMULATED, *EXIT, marks=pytest.mark.slow),
        pytest.param(SIMULATED, *ERROR, marks=pytest.mark.slow),
        pytest.param(ENCRYPTED, *ERROR, marks=pytest.mark.slow),
    ],
)
def test_a_failure_is_reported(action: str, ending: str, status: int) -> None:
    program = PROGRAM.format(action=action, ending=ending)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert "AssertionError" not in ended.stderr


TO_NOBODY = """
import os
reader, writer = os.pipe()
os.close(reader)
try:
    os.write(writer, b"anything")
except BrokenPipeError:
    raise SystemExit(3)
"""
IN_A_THREAD = """
from threading import Thread
thread = Thread(target=circuit.simulate, args=(codes,))
thread.start()
thread.join()
"""
KILLED_BY_PIPES = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"


@pytest.mark.parametrize("action", [SIMULATED, SLOWLY])
@pytest.mark.parametrize(
    ("before", "ending", "status"),
    [
        pytest.param("", TO_NOBODY, 3, marks=pytest.mark.slow),
        ("", IN_A_THREAD + TO_NOBODY, 3),
        (KILLED_BY_PIPES, TO_NOBODY, -signal.SIGPIPE),
    ],
    ids=["ignored, as Python does", "in a thread", "by default"],
)
def test_a_pipe_without_a_reader_is_what_it_was(
    action: str, before: str, ending: str, status: int
) -> None:
    program = before + PROGRAM.format(action=action, ending=ending)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
