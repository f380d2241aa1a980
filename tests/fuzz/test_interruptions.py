"""Ctrl-C, SIGTERM, a full disk, a read-only folder: the old file or the new one, and one line."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refqnn import IntFormat, Linear, Network, Node, Requantize, load
from refqnn.accumulator.certificate import Certificate
from refqnn.container import write_atomically

pytest.importorskip("click")
pytest.importorskip("rich")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals of Linux")

REFQNN = [sys.executable, "-m", "refqnn"]


def large_network() -> Network:
    """Its certificate and its ONNX file take a while to make and to write."""
    rng = np.random.default_rng(0)
    fmt = IntFormat(4, signed=False)
    return Network(
        [
            Node("fc1", Linear(rng.integers(-7, 8, (600, 400)))),
            Node("act1", Requantize.from_shift(6, fmt)),
            Node("fc2", Linear(rng.integers(-7, 8, (600, 600)))),
        ],
        input_shape=(400,),
        input_format=fmt,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    large_network().save(tmp_path / "net")
    return tmp_path


def catches(pid: int, number: int) -> bool:
    """Has the process a handler of its own for this signal?"""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def interrupted(command: list[str], seconds: float, number: int) -> tuple[int, str]:
    """Exit code and messages of a command that gets a signal some time after it has begun."""
    process = subprocess.Popen(
        [*REFQNN, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not catches(process.pid, signal.SIGTERM):
        time.sleep(0.01)  # Python is still loading numpy
    time.sleep(seconds)
    process.send_signal(number)
    _, messages = process.communicate(timeout=120)
    return process.returncode, messages


def is_whole(path: Path) -> bool:
    """A file that loads; absent files are whole too."""
    if not path.exists():
        return True
    if path.name == "certificate":
        Certificate.load(path)
    elif path.suffix in ("", ".onnx"):
        from refqnn.onnx import open_network

        open_network(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    else:
        json.loads(path.read_text().splitlines()[0])
    return True


COMMANDS = {
    "certify": ["certify", "net", "--json", "certificate"],
    "convert": ["convert", "net", "out.onnx"],
    "emit": ["vectors", "emit", "questions.jsonl"],
}


def test_an_interrupt_inside_of_a_callback_prints_nothing_and_comes_again() -> None:
    """Python ignores what a callback of a weak reference raises; importing has such callbacks."""
    code = (
        "import signal, sys, time, types, weakref\n"
        "class Held: pass\n"
        "held = Held()\n"
        "gone = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGTERM))\n"
        "def command():\n"
        "    global held\n"
        "    del held\n"
        "    time.sleep(60)\n"
        "cli = types.ModuleType('refqnn.commands.cli'); cli.refqnn = command\n"
        "sys.modules['refqnn.commands.cli'] = cli\n"
        "from refqnn.__main__ import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines() == ["interrupted; no file was left half-written"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.1, pytest.param(0.6, marks=pytest.mark.slow)])
def test_an_interrupted_command_leaves_whole_files(
    command: str, number: int, seconds: float, folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    code, messages = interrupted(COMMANDS[command], seconds, number)
    assert code in (0, 128 + number), messages
    assert "Traceback" not in messages
    if code:
        assert messages.strip().splitlines()[-1].startswith("interrupted")
    for path in folder.iterdir():
        assert path.name in ("net", *COMMANDS[command])
        assert is_whole(path)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 20.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo(seconds: float, number: int, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("concrete.fhe")
    monkeypatch.chdir(tmp_path)
    command = ["demo", "--quick", "--json", "out.json", "--save", "net", "--plot", "figure.png"]
    code, messages = interrupted(command, seconds, number)
    killed = [-signal.SIGKILL] if number == signal.SIGINT else []  # see refqnn.fhe.interrupts
    assert code in (0, 128 + number, -number, *killed), messages  # -number: while Python ends
    assert "Traceback" not in messages
    assert all(is_whole(path) for path in tmp_path.iterdir() if path.suffix != ".png")
    assert {path.name for path in tmp_path.iterdir()} <= {"out.json", "net", "figure.png"}


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.05])
def test_a_killed_save_leaves_the_old_file_or_the_new(delay: float, tmp_path: Path) -> None:
    """SIGKILL cannot be caught: a temporary file may stay, the target is whole."""
    script = (
        "import sys; from refqnn import load; net = load(sys.argv[1]); print(flush=True)\n"
        "while True: net.save(sys.argv[2])"
    )
    large_network().save(tmp_path / "net")
    target = tmp_path / "target"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "net"), str(target)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    time.sleep(0.2 + delay)
    process.kill()
    process.communicate()
    assert not target.exists() or load(target).digest == large_network().digest


# --- disks and folders ------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path) -> None:
    """A limit on the size of files stands for a disk that is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [*REFQNN, "convert", "net", "copy"]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "copy" in result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(folder) == ["net"]


def test_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left on device: '.*out'"):
        write_atomically(tmp_path / "out", fail)
    assert (tmp_path / "out").read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match=r"nowhere/out'"):
        write_atomically(tmp_path / "nowhere" / "out", fail)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_the_work(folder: Path) -> None:
    folder.chmod(0o500)
    command = [*REFQNN, "certify", "net", "--json", "new"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    folder.chmod(0o700)
    assert result.returncode == 2
    assert "read-only" in result.stderr


def test_a_private_file_is_private_from_the_start(tmp_path: Path) -> None:
    modes = []

    def write(file) -> None:
        modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"secret")

    umask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "private", write, private=True)
        write_atomically(tmp_path / "public", write)
    finally:
        os.umask(umask)
    assert modes == [0o600, 0o644]
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_devices_pipes_and_links_stay_what_they_are(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write_atomically(f"/dev/fd/{writer}", lambda file: file.write(b"through"))
    assert os.read(reader, 100) == b"through"
    write_atomically("/dev/null", lambda file: file.write(b"away"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", lambda file: file.write(b"content"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"content"
    os.close(reader)
    os.close(writer)


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m refqnn certify net | true"
    result = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr
    assert "Broken pipe" not in result.stderr
