"""Draw the picture of the first page: `python docs/_site/start_picture.py`.

A network driven by a slow wave, its trajectory, and what a few iterations of ELK make
of a guess of zeros.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

import elk_ssm as elk

LENGTH, SIZE, SHOWN = 150, 4, (1, 2, 4)
NOISE = 1e2


def recurrence():
    """Return a network, its initial state and its inputs."""
    W = jax.random.normal(jax.random.key(2), (SIZE, SIZE)) / SIZE**0.5
    V = jax.random.normal(jax.random.key(3), (SIZE,))
    inputs = 0.5 * jnp.sin(2 * jnp.pi * jnp.arange(LENGTH) / 50)
    return lambda x, u: jnp.tanh(W @ x + V * u), jnp.zeros(SIZE), inputs


def draw(path: Path) -> None:
    """Write the picture."""
    f, x0, inputs = recurrence()
    steps = jnp.arange(1, LENGTH + 1)
    truth = elk.sequential(f, x0, inputs).states[:, 0]
    size = {"figsize": (8, 4.4), "layout": "constrained"}
    _, panels = pyplot.subplots(len(SHOWN), 1, sharex=True, sharey=True, **size)
    guess, shown = jnp.zeros((LENGTH, SIZE)), iter(panels)
    for iteration in range(1, max(SHOWN) + 1):
        found = elk.linearize(f, guess, inputs, initial_state=x0, noise=NOISE).smooth()
        guess = found.means
        if iteration not in SHOWN:
            continue
        ax, mean = next(shown), found.means[:, 0]
        band = 2 * found.standard_deviations[:, 0]
        label = "iterate, with 2 standard deviations"
        low, high = mean - band, mean + band
        ax.fill_between(steps, low, high, color="C0", alpha=0.25, linewidth=0)
        ax.plot(steps, mean, "C0", linewidth=1.2, label=label)
        ax.plot(steps, truth, "k--", linewidth=0.9, label="trajectory, by lax.scan")
        ax.set_title(f"iteration {iteration}", loc="left", fontsize=9)
        ax.set_ylabel("state 0", fontsize=9)
        ax.set_ylim(-1.6, 1.6)
    panels[0].legend(loc="upper right", fontsize=8, ncols=2)
    panels[-1].set_xlabel("time step", fontsize=9)
    pyplot.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "figures" / "start.png")
