"""Real recordings of different lengths: seglearn's watch data and UEA `.ts` files.

A recording is an array `(T_i, C)`. Batches are padded at the end, and their lengths say
which steps are meant.

The `.ts` format of the UEA archive: lines that begin with `#` or `%` are comments, with
`@` a header, and after `@data` each line is one recording: its channels separated by
`:`, the values of a channel by `,`, the label last. Missing values are `?`.
"""

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Recordings(NamedTuple):
    """Labelled recordings.

    Attributes:
        series: Arrays `(T_i, C)`, float64.
        labels: Position of each label in `classes`, `(N,)` integers.
        classes: Names of the classes.
        groups: Who or what each recording is of, `(N,)`, or None.
    """

    series: list[np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None = None

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Recordings":
        """Return the recordings at the positions `chosen`."""
        groups = None if self.groups is None else self.groups[chosen]
        return self._replace(
            series=[self.series[i] for i in chosen],
            labels=self.labels[chosen],
            groups=groups,
        )


class Batch(NamedTuple):
    """Padded recordings: inputs `(N, T, C)`, lengths `(N,)`, labels `(N,)`."""

    inputs: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def load_watch() -> Recordings:
    """Return seglearn's watch data: 140 recordings, 7 exercises, 10 subjects.

    Morrow et al.: accelerometer and gyroscope at 50 Hz, T = 947 to 2,618, C = 6.
    """
    from seglearn.datasets import load_watch as load

    data = load()
    labels = np.asarray(data["y"], int)
    names = tuple(str(name) for name in data["y_labels"])
    series = [np.asarray(x, float) for x in data["X"]]
    return Recordings(series, labels, names, np.asarray(data["subject"], int))


def find_aeon(name: str) -> tuple[Path, Path]:
    """Return the `.ts` files of a data set that the aeon package ships.

    aeon itself is not imported.

    Raises:
        FileNotFoundError: aeon is not installed, or does not ship the data set.
    """
    spec = util.find_spec("aeon")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        folder = Path(place) / "datasets" / "data" / name
        if folder.is_dir():
            return folder / f"{name}_TRAIN.ts", folder / f"{name}_TEST.ts"
    raise FileNotFoundError(f"No data set {name} of aeon is installed.")


def read_ts(path: str | Path) -> Recordings:
    """Read a UEA `.ts` file, such as `EigenWorms_TRAIN.ts`.

    Returns:
        The recordings; classes in the order of the header, missing values as NaN.

    Raises:
        ValueError: The file is not a labelled `.ts` file without time stamps, or a
            line of it does not fit; the message names the line.
    """
    header: dict[str, list[str]] = {}
    rows: list[tuple[int, str]] = []
    reading = False
    for number, raw in enumerate(Path(path).read_text().splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#%":
            continue
        if reading:
            rows.append((number, line))
        elif line.startswith("@"):
            word, *rest = line[1:].split()
            header[word.lower()] = rest
            reading = word.lower() == "data"
        else:
            raise ValueError(f"{path}, line {number}: data before @data.")
    classes = _classes(path, header)
    if not reading or not rows:
        raise ValueError(f"{path} holds no recordings after @data.")
    parsed = [_recording(f"{path}, line {number}", line) for number, line in rows]
    unknown = {label for _, label in parsed} - set(classes)
    if unknown:
        raise ValueError(f"{path}: labels {sorted(unknown)} are not in @classLabel.")
    channels = {x.shape[1] for x, _ in parsed}
    if len(channels) > 1:
        raise ValueError(f"{path}: recordings have {sorted(channels)} channels.")
    labels = np.array([classes.index(label) for _, label in parsed])
    return Recordings([x for x, _ in parsed], labels, classes)


def _classes(path: str | Path, header: dict[str, list[str]]) -> tuple[str, ...]:
    if header.get("timestamps", ["false"])[0].lower() == "true":
        raise ValueError(f"{path}: files with time stamps are not supported.")
    labelled, *names = header.get("classlabel", ["false"])
    if labelled.lower() != "true" or not names:
        raise ValueError(f"{path}: @classLabel must be true and name the classes.")
    return tuple(names)


def _recording(where: str, line: str) -> tuple[np.ndarray, str]:
    *texts, label = line.split(":")
    if not texts:
        raise ValueError(f"{where}: expected channel:...:label, got {line[:40]!r}.")
    try:
        channels = [np.array([_value(v) for v in text.split(",")]) for text in texts]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    lengths = {len(channel) for channel in channels}
    if len(lengths) > 1:
        raise ValueError(f"{where}: channels of lengths {sorted(lengths)}.")
    return np.stack(channels, axis=1), label.strip()


def _value(text: str) -> float:
    return np.nan if text.strip() == "?" else float(text)


def split_by_group(
    recordings: Recordings, held_out: Sequence[int]
) -> tuple[Recordings, Recordings]:
    """Return (train, test), where test holds the groups `held_out` and train none.

    Raises:
        ValueError: The recordings have no groups, or a side is empty.
    """
    if recordings.groups is None:
        raise ValueError("These recordings have no groups to split by.")
    test = np.isin(recordings.groups, held_out)
    if test.all() or not test.any():
        raise ValueError(f"Holding out the groups {list(held_out)} empties one side.")
    return recordings.take(np.flatnonzero(~test)), recordings.take(np.flatnonzero(test))


def standardize(train: Recordings, *others: Recordings) -> list[Recordings]:
    """Scale every channel to mean 0 and deviation 1 over the training recordings."""
    together = np.concatenate(train.series)
    mean, deviation = np.nanmean(together, 0), np.nanstd(together, 0)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def scale(recordings: Recordings) -> Recordings:
        series = [np.nan_to_num((x - mean) / deviation) for x in recordings.series]
        return recordings._replace(series=series)

    return [scale(recordings) for recordings in (train, *others)]


def pad(
    recordings: Recordings, length: int | None = None, dtype: type = np.float32
) -> Batch:
    """Pad recordings with zeros at the end to one length, or cut them to it.

    Args:
        recordings: What to put side by side.
        length: T of the result; default is that of the longest recording.
        dtype: Floating dtype of the inputs.
    """
    longest = max(len(x) for x in recordings.series)
    length = longest if length is None else length
    lengths = np.array([min(len(x), length) for x in recordings.series], np.int32)
    shape = (len(recordings.series), length, recordings.series[0].shape[1])
    inputs = np.zeros(shape, dtype)
    for row, x, valid in zip(inputs, recordings.series, lengths):
        row[:valid] = x[:valid]
    return Batch(inputs, lengths, recordings.labels.astype(np.int32))
