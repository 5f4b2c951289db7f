"""Files made to exhaust memory are refused by what they say, before it is taken.

Some would take terabytes. Each is read in one process of its own, whose address space
may grow by a gigabyte from where it is when the package has been imported, and which
says how much memory each file took at its worst.
"""

import gzip
import io
import json
import subprocess
import sys
import zipfile
import zlib

import h5py
import pytest

READ = """
import json, resource, sys
from pathlib import Path
import h5py, pandas, scipy.io
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading import Reading, read_recording

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    before = peak()
    try:
        read_recording(path, Reading())
        line = "read"
    except UsageError as error:
        line = str(error)
    except BaseException as error:
        line = f"{type(error).__name__}: {error}"
    said[path.name] = line, peak() - before
print(json.dumps(said))
"""


def npy(header, data=b"", version=b"\x02\x00", size=None):
    """Bytes of an .npy file with any header."""
    size = len(header) if size is None else size
    return b"\x93NUMPY" + version + size.to_bytes(4, "little") + header + data


def header(shape):
    return f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


def zipped(name, data):
    """Bytes of an archive with one member, given in parts."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(file, "w", method, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for part in data:
            member.write(part)
    return file.getvalue()


def hdf5(path, make):
    with h5py.File(path, "w") as file:
        make(file)


def wide_chunk(file):
    """Ten numbers in a chunk that is two gigabytes when it is decompressed."""
    data = file.create_dataset(
        "v", (10,), "f4", chunks=(2**29,), maxshape=(None,), compression="gzip"
    )
    data.id.write_direct_chunk((0,), zlib.compress(bytes(2**20)))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    files = {
        "shape.npy": npy(header((10**12,))),
        "overflow.npy": npy(header((2**62, 2**62))),
        "negative.npy": npy(header((-(2**40),))),
        "deep.npy": npy(b"(" * 60_000),
        "cut.npy": npy(header((1000,)), bytes(80)),
        "long.npy": npy(b" " * 1000, size=2**32 - 1),
        "shape.npz": zipped("v.npy", [npy(header((10**12,)))]),
        "zeros.npz": zipped("v.npy", [npy(header((2**27,))), bytes(2**20)]),
        # NumPy reads a header whole before it judges it: here 256 megabytes of blanks.
        "long.npz": zipped("v.npy", [npy(b"", size=2**32 - 1), *([b" " * 2**24] * 16)]),
        "bomb.csv.gz": gzip.compress(b"0.5\n" * 2**22, 1) * 256,
        "line.csv.gz": gzip.compress(b"0" * 2**24, 1) * 256,
        "field.csv": b"0.5\n" + b"1" * 2**22 + b"\n",
        "wide.csv": b"0.5," * 2**20 + b"1\n",
        "spaces.csv": b"0.5 " * 2**20 + b"1\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with open(folder / "sparse.csv", "wb") as file:
        file.truncate(2**40)
    (folder / "endless.csv").symlink_to("/dev/zero")
    hdf5(
        folder / "shape.h5",
        lambda file: file.create_dataset("v", (10**13,), "f8", chunks=(1000,)),
    )
    hdf5(folder / "chunk.h5", wide_chunk)
    secret = [("/etc/hostname", 0, 8)]
    hdf5(
        folder / "elsewhere.h5",
        lambda file: file.create_dataset("v", (8,), "u1", external=secret),
    )
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "v", (8,))
    hdf5(folder / "virtual.h5", lambda file: file.create_virtual_dataset("v", layout))
    run = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


LARGE = "too large: it takes"
WORDS = {
    "shape.npy": LARGE,
    "overflow.npy": LARGE,
    "negative.npy": "not a readable .npy array",
    "deep.npy": "not a readable .npy array",
    "cut.npy": "it is cut off",
    "long.npy": "not a readable .npy array",
    "shape.npz": LARGE,
    "zeros.npz": LARGE,
    "long.npz": "not a readable .npy array",
    "bomb.csv.gz": LARGE,
    "line.csv.gz": LARGE,
    "field.csv": "not readable as a table",
    "wide.csv": "too many columns",
    "spaces.csv": "too many columns",
    "sparse.csv": LARGE,
    "endless.csv": LARGE,
    "shape.h5": LARGE,
    "chunk.h5": LARGE,
    "elsewhere.h5": "its numbers are in other files",
    "virtual.h5": "its numbers are in other files",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", WORDS)
def test_a_hostile_file_is_one_line_and_little_memory(said, name):
    line, taken = said[name]
    assert WORDS[name] in line
    assert "\n" not in line
    # Text is held while there is room for it; everything else is judged by its start.
    assert taken < (2**29 if name.startswith(("bomb", "line", "endless")) else 2**26)


def test_every_file_was_tried(said):
    assert set(said) == set(WORDS)
