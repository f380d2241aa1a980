"""A process that has used Concrete still ends with its own status."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from refqnn import IntFormat, Linear, Lookup, Network, Node, fhe

squares = Lookup(np.arange(7)[None] ** 2, -3, IntFormat(6, signed=False))
nodes = [Node("sum", Linear(np.array([[1, -1]]))), Node("squares", squares)]
network = Network(nodes, input_shape=(2,), input_format=IntFormat(2, signed=False))
circuit = fhe.compile(network)
codes = np.array([[3, 1]])
assert {action} == [[25]]
{ending}
"""


@pytest.mark.parametrize("action", ["circuit.simulate(codes)", "circuit.execute(codes)"])
@pytest.mark.parametrize(("ending", "status"), [("raise SystemExit(3)", 3), ("raise OSError", 1)])
def test_a_failure_is_reported(action: str, ending: str, status: int) -> None:
    program = PROGRAM.format(action=action, ending=ending)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert "AssertionError" not in ended.stderr
