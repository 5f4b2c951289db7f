"""Run the tests that need several devices, where XLA is told to make them up.

The number of devices is fixed when JAX starts, so these tests live in modules that
pytest does not collect by itself, and each module runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Compiled as quickly as everything else here: see `conftest`.
FLAGS = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"

MODULES = (
    "mesh_driver",
    "mesh_evaluate",
    "mesh_collectives",
    "mesh_lgssm",
    "mesh_smooth",
)


# Programs for eight devices take the compiler long on two cores.
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("module", MODULES)
def test_on_eight_devices(module):
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += ["-o", "timeout=900"]
    run = subprocess.run(
        [*command, str(HERE / f"{module}.py")],
        env={**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
