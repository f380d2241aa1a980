"""`refqnn bench --compare`, and what results say of the commit they were measured at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from refqnn.cli import refqnn
from refqnn.commands import bench as benches
from refqnn.commands.compare import RATIOS, compared
from refqnn.errors import InvalidArgument

ROOT = Path(__file__).parents[2]

# A bench whose new figures lie in the file "now", or that fails where there is none.
SCRIPT = '''"""How fast it is."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path(sys.argv[2], "clear_speed.json").write_text(Path("now").read_text())
'''


def figures(ours: float, peer: float) -> dict[str, object]:
    seconds = {"refqnn": ours, "refqnn predict": 1.0, "BLAS limit": ours, "onnxruntime": peer}
    return {"results": [{"network": "iris", "batch": 1, "seconds": seconds}]}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is a checkout of one bench: the peer takes twice our time."""
    folder = tmp_path / "bench"
    folder.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (folder / "common.py").touch()
    (folder / "clear_speed.py").write_text(SCRIPT)
    (folder / "clear_speed.json").write_text(json.dumps(figures(1.0, 2.0)))
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "site-packages" / "refqnn" / "commands" / "x.py"
    monkeypatch.setattr(benches, "__file__", str(installed))
    return tmp_path


@pytest.mark.parametrize(
    ("ours", "peer", "code"),
    [(1.0, 2.0, 0), (10.0, 20.0, 0), (1.0, 9.0, 0), (1.0, 1.7, 0), (1.0, 1.6, 1), (1.3, 2.0, 1)],
)
def test_a_ratio_that_is_worse_is_an_error(
    checkout: Path, ours: float, peer: float, code: int
) -> None:
    (checkout / "now").write_text(json.dumps(figures(ours, peer)))
    result = CliRunner().invoke(refqnn, ["bench", "--compare", "clear_speed"])
    assert result.exit_code == code, result.output
    assert "iris, batch 1: onnxruntime" in result.output
    assert ("worse" in result.output) == bool(code)
    assert json.loads((checkout / "bench" / "clear_speed.json").read_text()) == figures(1.0, 2.0)


def test_a_bench_that_fails_or_has_no_peer(checkout: Path) -> None:
    assert CliRunner().invoke(refqnn, ["bench", "--compare", "clear_speed"]).exit_code == 1
    with pytest.raises(InvalidArgument, match="clear_speed, fhe"):
        compared("iris", {}, {})


@pytest.mark.parametrize("name", RATIOS)
def test_committed_figures_are_as_good_as_themselves(name: str) -> None:
    content = json.loads((ROOT / "bench" / f"{name}.json").read_text())
    found = compared(name, content, content)
    assert len(found) >= 5
    assert all(row.before == row.now > 0.0 and not row.worse for row in found)


def test_results_name_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    common = importlib.import_module("common")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for part in ("bench", "refqnn"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "module.py").touch()
    monkeypatch.setattr(common, "FOLDER", tmp_path / "bench")
    assert common.commit() is None
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    written = json.loads(common.write_results("x", {}, tmp_path).read_text())
    assert written["machine"]["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "refqnn" / "module.py").write_text("changed")
    assert common.commit() == git("rev-parse", "HEAD") + "+"
    sys.modules.pop("common")
