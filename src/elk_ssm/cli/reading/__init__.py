"""Data in: a file of many formats becomes a `Recording`, and says what it was.

    recording = read_recording(path, reading)       what is there, gaps as NaN
    recording = fill_gaps(recording, "interpolate") or refused, if there are any
    recording.line()          "40,000 samples x 1 column (voltage, header), 3 gaps"

Row t of `values`, shape `(T, E)`, is the sample at time t. What a file could mean in
two ways is refused in one line that names the flag which settles it; nothing is guessed
that would shift time, make a name a sample or a sample a name. `text` and `sniffing`
are for CSV and its kin, `arrays` for NPY and NPZ, `containers` for MAT and HDF5, and
`frames` for Parquet and Feather; `sizes` refuses what would not fit into memory before
it is read.
"""

from elk_ssm.cli.reading.gaps import GAP_POLICIES, fill_gaps
from elk_ssm.cli.reading.options import Reading, add_reading_arguments, reading_of
from elk_ssm.cli.reading.reader import SUFFIXES, read_recording
from elk_ssm.cli.reading.recording import Recording

__all__ = [
    "GAP_POLICIES",
    "SUFFIXES",
    "Reading",
    "Recording",
    "add_reading_arguments",
    "fill_gaps",
    "read_recording",
    "reading_of",
]
