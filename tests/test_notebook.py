"""docs/quickstart.ipynb runs from top to bottom, without a network."""

import json
import os
import subprocess
import time

import pytest

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"


def run_cell(source: str, names: dict[str, object]) -> str:
    """Run a cell as Jupyter does: lines with ``!`` in a shell; return what these print."""
    printed, plain = "", []
    for line in source.splitlines():
        if not line.startswith("!"):
            plain.append(line)
            continue
        exec("\n".join(plain), names)
        plain = []
        command = line[1:].format_map(names)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    exec("\n".join(plain), names)
    return printed


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    begin, printed = os.times(), ""
    for cell in cells:
        printed += run_cell(cell, names)
    end = os.times()
    assert "accuracy" in printed
    assert len(capsys.readouterr().out.splitlines()) == 3, "three classes of the drawn flower"
    # In processor time, which other programs do not lengthen: five minutes on two cores.
    used = end.user - begin.user + end.children_user - begin.children_user
    assert used < 2 * 300, time.strftime("%M:%S", time.gmtime(used))


def test_the_notebook_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
