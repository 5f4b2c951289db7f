"""Run a benchmark by name, or say in one line what it needs.

    python -m benchmarks NAME [--small]

What the benchmarks import beside the package itself is in the dependency group `dev`.
"""

import importlib
import sys


def run(name: str, arguments: list[str]) -> int:
    """Run the command line of `benchmarks/NAME.py` and return its exit code."""
    try:
        return importlib.import_module(f"benchmarks.{name}").main(arguments) or 0
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).split(".")[0]
        print(
            f"elk-ssm: error: the benchmark {name} needs {missing}: install it, or all "
            'that benchmarks need by "pip install --group dev" in the checkout.',
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
