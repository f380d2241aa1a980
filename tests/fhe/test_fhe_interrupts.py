"""Control-C in a process of its own: nothing half-written, and objects that still work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each step announces itself; its interrupt is expected before the next one begins.
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, "tests/fhe")
import fhe_networks as nets
from refqnn import fhe

folder = Path(sys.argv[1])
network = nets.mlp(2, sizes=(4, 8, 3), largest=1, codes=nets.U2, shift=1)
codes = nets.samples(network, 4)[-4:]
many = np.tile(codes, (20_000, 1))
circuit = fhe.compile(network)

def interrupted(step, action):
    print(step, flush=True)
    try:
        action()
        time.sleep(600)  # it was done before the interrupt came
    except KeyboardInterrupt:
        pass
    left = sorted(path.name for path in folder.iterdir())
    assert left == sorted(written), (step, left)

def works(run):
    np.testing.assert_array_equal(run(codes), network.forward(codes))

written = []
interrupted("keygen", circuit.keygen)
works(circuit.execute)
interrupted("execute", lambda: circuit.execute(many))
works(circuit.execute)

circuit.save_client(folder / "client")
circuit.save_server(folder / "server")
written = ["client", "server"]
client, server = fhe.Client.load(folder / "client"), fhe.Server.load(folder / "server")
interrupted("client keygen", client.keygen)
interrupted("save requests", lambda: client.save_requests(many, folder / "requests"))
client.save_keys(folder / "keys")
client.save_evaluation_keys(folder / "evaluation")
client.save_requests(np.tile(codes, (100, 1)), folder / "requests")
written += ["keys", "evaluation", "requests"]
server.load_evaluation_keys(folder / "evaluation")
interrupted("answer", lambda: server.answer(folder / "requests", folder / "answers"))
client.save_requests(codes, folder / "requests")
server.answer(folder / "requests", folder / "answers")
works(lambda codes: client.read_answers(folder / "answers"))

# Last: the threads of a pool may take the signal from then on, as those of a BLAS do.
written += ["answers"]
interrupted("workers", lambda: circuit.execute(many[:200], n_jobs=2))
works(lambda codes: circuit.execute(codes, n_jobs=2))
print("end", flush=True)
"""

STEPS = ["keygen", "execute", "client keygen", "save requests", "answer", "workers", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_control_c_leaves_everything_usable(tmp_path: Path, delay: float) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    # A thread of numpy's BLAS may take the signal instead: see refqnn.fhe.interrupts.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] != "end":
                time.sleep(delay)
                process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert said == STEPS
