"""The notebook of the examples, run from top to bottom by a kernel, whose event loop is running."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the notebook trains (pip install agentrl[train])")
nbformat = pytest.importorskip("nbformat", reason="part of the dev dependencies")
nbclient = pytest.importorskip("nbclient", reason="part of the dev dependencies")

NOTEBOOK = Path(__file__).parents[3] / "examples" / "notebook.ipynb"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


def shown(cell: Any) -> str:
    """What a cell printed, and its value."""
    texts = [output.get("text", "") for output in cell.outputs]
    return "".join(texts + [output.get("data", {}).get("text/plain", "") for output in cell.outputs])


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = {cell.source.splitlines()[-1]: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}
    episode = cells["print(episode)"]
    assert "--- environment\n152*43+324" in episode
    assert "--- policy" in episode
    assert "sampled=True" in cells["episode.tokens()[-5:]"]
    assert "avg@2" in cells["before"]
    assert "stopped at version 2" in cells["    print(stopped)"]
    assert cells["run"] == "Run('runs/notebook', version 4 of 4)"
    assert cells["agentrl.replay(run, env=Products).same"] == "True"
    values = next(shown(cell) for cell in notebook.cells if "token.entropy" in cell.source)
    assert "None" not in values
    recorded = next(cell for cell in notebook.cells if cell.source.endswith("\nrecorded"))
    assert "<pre" in recorded.outputs[0]["data"]["text/html"]
    nbformat.write(notebook, tmp_path / "done.ipynb")
