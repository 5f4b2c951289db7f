"""What a wheel brings, used from an environment that has nothing else.

    python -I tests/smoke.py dist/elk_ssm-*.whl

Run by `make wheel` with the interpreter of an environment into which the wheel and its
requirements were installed, no extra among them. Says one line, or fails.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata, resources
from pathlib import Path, PurePosixPath

FOLDERS = {"elk_ssm"}
EXTRAS = ("pandas", "matplotlib", "flax")


def check_contents(wheel: Path) -> None:
    """The wheel holds the package, its marker of types, its licence; nothing else."""
    names = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    version = metadata.version("elk-ssm")
    about = f"elk_ssm-{version}.dist-info"
    assert {name.parts[0] for name in names} == FOLDERS | {about}, names
    inside = {str(name) for name in names}
    wanted = {"elk_ssm/py.typed", f"{about}/licenses/LICENSE", f"{about}/METADATA"}
    assert wanted <= inside, wanted - inside
    strange = [n for n in names if n.parts[0] == "elk_ssm" and n.suffix != ".py"]
    assert [str(name) for name in strange] == ["elk_ssm/py.typed"], strange
    tests = [n for n in names if n.name.startswith(("test_", "conftest"))]
    assert not tests, tests


def check_library() -> None:
    """Imported from the environment; an evaluation and its gradient are right."""
    import jax
    import jax.numpy as jnp

    import elk_ssm as elk

    assert Path(elk.__file__).is_relative_to(sys.prefix), elk.__file__
    assert elk.__version__ == metadata.version("elk-ssm")
    assert resources.files("elk_ssm").joinpath("py.typed").is_file()

    def total(a, run):
        return run(lambda x, u: jnp.tanh(a * x + u)).sum()

    def parallel(f):
        solution = elk.evaluate(f, jnp.zeros(3), jnp.ones((50, 3)))
        elk.raise_if_failed(solution)
        return solution.states

    def plain(f):
        def step(x, u):
            return (f(x, u),) * 2

        return jax.lax.scan(step, jnp.zeros(3), jnp.ones((50, 3)))[1]

    assert abs(total(0.5, parallel) - total(0.5, plain)) < 1e-3
    slopes = [
        jax.grad(lambda a, run=run: total(a, run))(0.5) for run in (parallel, plain)
    ]
    assert abs(slopes[0] - slopes[1]) < 1e-2, slopes


def command(*args: str, code: int = 0) -> str:
    """Run the installed `elk-ssm`, and return what it said."""
    program = shutil.which("elk-ssm", path=str(Path(sys.executable).parent))
    assert program is not None
    run = subprocess.run([program, *args], capture_output=True, text=True, timeout=300)
    assert run.returncode == code, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    return run.stdout if code == 0 else run.stderr


def check_command_line() -> None:
    """Help, an evaluation of an array, and what is said of extras that are absent."""
    import numpy as np

    assert "evaluate" in command("--help")
    assert metadata.version("elk-ssm") in command("--version")
    values = np.sin(np.arange(80.0))
    np.save("wave.npy", values)
    said = command(
        *("evaluate", "--input=wave.npy", "--cell=gru", "--state-size=4"),
        "--output=states.npz",
    )
    assert said.startswith("80 samples x 1 column"), said
    with np.load("states.npz") as found:
        assert any(found[name].shape == (80, 4) for name in found.files), found.files
    Path("wave.csv").write_text("\n".join(map(str, values)))
    for package in EXTRAS:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        raise AssertionError(f"{package} is here: the environment is not empty")
    args = (
        "evaluate",
        "--input=wave.csv",
        "--cell=gru",
        "--state-size=4",
        "--output=a.npz",
    )
    assert "elk-ssm[data]" in command(*args, code=2)
    assert "elk-ssm[plots]" in command("demo", code=2)


def main() -> None:
    """Check everything, in a folder of its own."""
    wheel = Path(sys.argv[1]).resolve()
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.chdir(folder)
        check_library()
        check_command_line()
        os.chdir("/")
    print(f"{wheel.name}: built, installed and used")


if __name__ == "__main__":
    main()
