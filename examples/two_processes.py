"""One sequence over several processes, here on one machine over loopback.

    python examples/two_processes.py

starts two processes that hold one half of the inputs each, evaluates a recurrence over
both, differentiates it, and compares with a plain scan. On a cluster the same worker
runs once on every host, with the address of the first one:

    python two_processes.py --worker 0 --coordinator host0:1234 --workers 16

Nothing but the start differs from one process: a mesh over all devices of all processes
is handed to `elk.evaluate`. If a process dies, the others end with an error: at once
when they wait for it in a collective, or when its heartbeat has been missing for
`--heartbeat` seconds; one that never comes is waited for during `--patience` seconds.
"""

import argparse
import os
import socket
import subprocess
import sys
import time


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=20_000, help="steps in all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--solves", type=int, default=1, help="repeat the solve")
    parser.add_argument("--heartbeat", type=int, default=20, help="seconds")
    parser.add_argument("--patience", type=int, default=60, help="seconds")
    parser.add_argument("--worker", type=int, help="which one this process is")
    parser.add_argument("--coordinator", help="host:port of worker 0")
    return parser.parse_args(argv)


def launch(options: argparse.Namespace) -> int:
    """Start the workers, wait for all, and end the others when one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, *sys.argv[1:], "--coordinator", coordinator]
    workers = [
        subprocess.Popen([*command, "--worker", str(i)]) for i in range(options.workers)
    ]
    try:
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.1)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
    return max(abs(worker.wait()) for worker in workers)


def work(options: argparse.Namespace) -> None:
    """Evaluate and differentiate, as one of the processes."""
    # Before JAX starts: two devices in each process, if they are made up on a CPU.
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        options.coordinator,
        num_processes=options.workers,
        process_id=options.worker,
        initialization_timeout=options.patience,
        heartbeat_timeout_seconds=options.heartbeat,
        shutdown_timeout_seconds=30,
    )
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    import elk_ssm as elk

    size = 4
    mesh = Mesh(np.array(jax.devices()), ("time",))
    say = print if options.worker == 0 else lambda *_, **__: None
    say(f"{jax.process_count()} processes, {len(jax.devices())} devices", flush=True)

    def inputs_of(begin: int, end: int) -> np.ndarray:
        """Make any stretch of the inputs; no process ever makes all of them."""
        t = np.arange(begin, end)[:, None]
        return np.sin(0.1 * t * np.arange(1, size + 1)).astype(np.float32)

    share = options.length // options.workers
    mine = inputs_of(options.worker * share, (options.worker + 1) * share)
    inputs = jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("time")), mine
    )
    weights = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    weights = weights / 2

    @jax.jit
    def solve(weights, inputs):
        def loss(weights):
            def f(x, u):
                return jnp.tanh(weights @ x + u)

            sol = elk.evaluate(f, jnp.zeros(size), inputs, mesh=mesh)
            return jnp.mean(sol.states**2), sol

        return jax.value_and_grad(loss, has_aux=True)(weights)

    for _ in range(options.solves):
        (loss, sol), gradient = solve(weights, inputs)
        jax.block_until_ready(gradient)
        say("solved", flush=True)
    elk.raise_if_failed(sol)
    here = [shard.data.shape[0] for shard in sol.states.addressable_shards]
    say(f"{int(sol.num_iters)} passes; {sum(here):,} of {options.length:,} states here")
    check(weights, inputs_of(0, options.length), float(loss), np.asarray(gradient))
    say("loss and gradient are those of a plain scan")
    jax.distributed.shutdown()


def check(weights, inputs, loss: float, gradient) -> None:
    """Compare with `jax.lax.scan` in this process alone; at sizes that allow it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def scanned(weights):
        def body(x, u):
            x = jnp.tanh(weights @ x + u)
            return x, x

        start = jnp.zeros(weights.shape[0])
        return jnp.mean(jax.lax.scan(body, start, inputs)[1] ** 2)

    expected = jax.value_and_grad(scanned)(jnp.asarray(weights))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-4)
    size = float(jnp.max(jnp.abs(expected[1])))
    np.testing.assert_allclose(gradient, expected[1], atol=1e-3 * size)


if __name__ == "__main__":
    chosen = parse()
    if chosen.worker is None:
        sys.exit(launch(chosen))
    work(chosen)
