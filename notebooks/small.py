"""Small sizes for the notebooks, so that tests run them in seconds.

    python -m notebooks.small NAME   # run one of them

The sizes of a script are numbers in it, as its readers see them; here is what a test
puts in their place.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES: dict[str, dict[str, str]] = {
    "beyond_one_device": {"T, D = 80_000, 4": "T, D = 800, 4"},
    "combine_with_dynamax": {
        "T, DT, STEPS = 400, 0.05, 60": "T, DT, STEPS = 60, 0.05, 3"
    },
    "damping_is_observation_noise": {"T = 300": "T = 60"},
    "dynamax_faster": {
        "ITERATIONS = 14, 4, 60": "ITERATIONS = 4, 2, 3",
        "series.std(0))": "series.std(0))[:40]",
        "hidden = slice(100, 180)": "hidden = slice(20, 35)",
    },
    "rnn_evaluation_is_inference": {"T, D = 200, 4": "T, D = 60, 4"},
    "spike_rate": {
        "edges)[0].astype(float)": "edges)[0].astype(float)[:150]",
        "num_steps=300": "num_steps=3",
    },
    "stochastic_volatility": {
        'np.asarray(table["Adj Close"])': 'np.asarray(table["Adj Close"])[-151:]',
        "days = table.index[1:]": "days = table.index[-150:]",
        "num_steps=400": "num_steps=3",
    },
    "train_rnn": {
        "SIZE, STEPS, STRIDE = 16, 150, 2": "SIZE, STEPS, STRIDE = 4, 10, 25"
    },
    "which_method_when": {
        "T, D = 500, 8": "T, D = 80, 4",
        "LONG = 30_000": "LONG = 600",
    },
}


def source(name: str) -> str:
    """Return the code of a notebook at its small size."""
    code = (HERE / f"{name}.py").read_text()
    for size, small in SIZES[name].items():
        if code.count(size) != 1:
            raise ValueError(f"notebooks/{name}.py has {size!r} not once.")
        code = code.replace(size, small)
    return code


def run(name: str) -> dict:
    """Run a notebook at its small size; return its names."""
    names = {"__name__": "__main__"}
    exec(compile(source(name), f"{name}.py", "exec"), names)
    return names


if __name__ == "__main__":
    run(sys.argv[1])
