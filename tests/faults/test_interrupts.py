"""Ctrl-C at moments that nobody chose, from the import of the package to the last file.

The moments are the n-th import, the opening, renaming or removing of a file, seen by an
audit hook that sends the signal just before it happens; and instants of the computation
in between, where no such thing happens. `HYPOTHESIS_PROFILE=long` tries many more.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

if os.name != "posix":
    pytest.skip("signals of POSIX", allow_module_level=True)

OLD = b"what was there before"
SEED = int(os.environ.get("SEED", "20"))
MANY = os.environ.get("HYPOTHESIS_PROFILE") == "long"

# What the parent ignores would stay ignored. Counting begins when the package hears.
SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
event, part, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
def watch(name, args):
    global number
    if name != event or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return
    if part not in str(args[0]):
        return
    number -= 1
    if number == 0:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(watch)
sys.orig_argv = [sys.executable, "-m", "elk_ssm"]
import runpy
runpy.run_module("elk_ssm", run_name="__main__", alter_sys=True)
"""

COMMANDS = {
    "evaluate": (
        ["evaluate", "--input", "v.csv", "--cell", "gru", "--output", "o.npz"],
        ["o.npz"],
    ),
    "fit": (
        [
            "fit",
            "v.csv",
            "--model",
            "level",
            "--forecast",
            "9",
            "--output",
            "o.csv",
            "--figure",
            "o.png",
            "--save-params",
            "o.json",
            "--max-iters",
            "5",
        ],
        ["o.csv", "o.png", "o.json"],
    ),
    "demo": (["demo", "--length", "60"], ["elk-ssm-demo.png"]),
}
NEVER = ("import", "", 10**9)

# A command, what is waited for, and the share of ten seconds after its first words.
CASES = [
    ("evaluate", ("open", ".tmp", 1), None),  # Whether the file can be written
    ("evaluate", ("open", ".tmp", 2), None),
    ("evaluate", ("os.rename", "", 1), None),
    ("fit", ("os.rename", "", 2), None),
]
rng = np.random.default_rng(SEED)
for _ in range(15 if MANY else 1):
    CASES += [
        ("evaluate", ("import", "", int(rng.integers(1, 1500))), None),
        ("evaluate", NEVER, rng.uniform(0, 0.2)),
        ("fit", NEVER, rng.uniform(0, 1)),
        ("demo", NEVER, rng.uniform(0, 1)),
    ]
if MANY:
    CASES += [("fit", ("open", ".tmp", n), None) for n in range(1, 7)]
    CASES += [("demo", ("os.rename", "", 1), None), ("demo", ("open", "tmp", 2), None)]


def whole(path):
    """Whether a file is one that a command has written to its end."""
    content = path.read_bytes()
    if path.suffix == ".npz":
        with np.load(path) as file:
            return all(file[name] is not None for name in file.files)
    if path.suffix == ".json":
        return "parameters" in json.loads(content)
    if path.suffix == ".png":
        return content.startswith(b"\x89PNG") and b"IEND" in content[-12:]
    return content.count(b"\n") == 10 and content.endswith(b"\n")


@pytest.mark.parametrize(("command", "moment", "later"), CASES)
def test_one_line_and_whole_files(command, moment, later, tmp_path):
    argv, names = COMMANDS[command]
    np.savetxt(tmp_path / "v.csv", np.sin(np.arange(80.0)), header="v", comments="")
    outputs = [tmp_path / name for name in names]
    for path in outputs:
        path.write_bytes(OLD)
    event = [str(x) for x in moment]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = [sys.executable, "-c", SCRIPT, *event, *argv]
    with subprocess.Popen(run, cwd=tmp_path, **pipes) as child:
        if later is not None:
            # Of `demo` nothing is heard before its end; its package takes a second.
            heard = "" if command == "demo" else child.stdout.readline()
            time.sleep(10 * later + (2 if command == "demo" else 0))
            child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=200)
    kept = [path.read_bytes() == OLD for path in outputs]
    assert sorted(os.listdir(tmp_path)) == sorted(["v.csv", *names])
    assert len(set(kept)) == 1, "some files are new and some old"
    assert kept[0] or all(whole(path) for path in outputs)
    if child.returncode == 0:  # It came too late: all was done.
        assert later is not None or moment[0] == "os.rename"
        assert (err, kept[0]) == ("", False)
    else:
        assert (child.returncode, err) == (130, "elk-ssm: interrupted\n")
    if later is not None and command != "demo":
        assert heard.startswith("80 samples")
