"""Convert the scripts of this folder to executed `.ipynb` files beside them.

    python -m notebooks.execute [name ...]

Run as `make notebooks`, which installs what a kernel needs.
"""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TOOLS = ("__init__", "execute", "small")


def scripts() -> list[Path]:
    """Return the scripts that are notebooks."""
    return sorted(path for path in HERE.glob("*.py") if path.stem not in TOOLS)


def execute(path: Path) -> Path:
    """Run one script from top to bottom and write what it printed and drew."""
    notebook = jupytext.read(path)
    options = {"timeout": 1800, "kernel_name": "python3", "coalesce_streams": True}
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, resources=resources, **options).execute()
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)  # clocks, which change at every run
        cell.id = f"cell-{number}"
        kept = (o for o in cell.get("outputs", []) if o.get("name") != "stderr")
        if cell.cell_type == "code":
            cell.outputs = list(kept)
    notebook.metadata.pop("language_info", None)
    target = path.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def main(names: list[str]) -> int:
    """Execute the notebooks of these names, or all."""
    for path in scripts():
        if not names or path.stem in names:
            start = time.perf_counter()
            size = execute(path).stat().st_size
            seconds = time.perf_counter() - start
            print(f"{path.stem}: {seconds:.0f} s, {size / 1e3:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
