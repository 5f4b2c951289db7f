"""`elk-ssm fit`, `smooth` and `decompose`: files, words and exit codes."""

import csv
import json
import os

import numpy as np
import pandas as pd
import pytest
from statsmodels.tsa.statespace.structural import UnobservedComponents

from elk_ssm import cli

MODEL = "--model=level"
STEPS, GAPS = 48, [5, 6, 30]


def values():
    rng = np.random.default_rng(3)
    y = np.cumsum(rng.normal(size=STEPS)) + rng.normal(size=STEPS) + 300
    y[GAPS] = np.nan
    return y


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a monthly series, one of whose gaps has no row."""
    path = tmp_path_factory.mktemp("series")
    months = pd.date_range("2000-01-31", periods=STEPS, freq="ME")
    frame = pd.DataFrame({"month": months, "flow": values()})
    frame.drop(index=GAPS[-1]).to_csv(path / "data.csv", index=False)
    return path


@pytest.fixture(scope="module")
def fitted(place):
    """What a fit has written, once."""
    argv = ["fit", *data(place), MODEL, "--forecast=12"]
    names = {"output": "f.csv", "figure": "f.png", "save-params": "p.json"}
    argv += [f"--{flag}={place / name}" for flag, name in names.items()]
    assert cli.main(argv) == 0
    return json.loads((place / "p.json").read_text())


def data(place):
    return [str(place / "data.csv"), "--time-column=month"]


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "month"]
    dates = [row["month"] for row in rows]
    numbers = {k: np.array([float(row[k] or "nan") for row in rows]) for k in names}
    return dates, numbers


def theirs(parameters):
    model = UnobservedComponents(values(), level="llevel", use_exact_diffuse=True)
    names = "noise.variance", "level.variance"
    return model.smooth([parameters[name] for name in names])


def test_a_forecast_is_that_of_statsmodels(place, fitted):
    expected = theirs(fitted["parameters"])
    np.testing.assert_allclose(fitted["log_likelihood"], expected.llf, rtol=1e-9)
    dates, numbers = table(place / "f.csv")
    assert dates[:2] == ["2004-01-31", "2004-02-29"]
    assert len(dates) == 12
    ahead = expected.get_forecast(12)
    np.testing.assert_allclose(numbers["mean"], ahead.predicted_mean, rtol=1e-9)
    np.testing.assert_allclose(numbers["std"], ahead.se_mean, rtol=1e-7)
    band = ahead.conf_int(alpha=0.05)
    np.testing.assert_allclose(numbers["lower"], band[:, 0], rtol=1e-8)
    np.testing.assert_allclose(numbers["upper"], band[:, 1], rtol=1e-8)
    assert (place / "f.png").read_bytes().startswith(b"\x89PNG")
    assert fitted["model"] == "level"
    assert fitted["status"] == "converged"
    assert fitted["num_observations"] == STEPS - len(GAPS)


def test_parameters_put_back_are_not_fitted_again(place, fitted, capsys):
    argv = ["smooth", *data(place), f"--params={place / 'p.json'}"]
    assert cli.main([*argv, f"--output={place / 's.csv'}"]) == 0
    shown = capsys.readouterr().out
    assert "1 step without a row" in shown
    assert "parameters as given" in shown
    errors = fitted["standard_errors"]["level.variance"]
    assert f"{errors:.4g}" in shown
    _, numbers = table(place / "s.csv")
    smoother = theirs(fitted["parameters"]).smoother_results
    np.testing.assert_allclose(numbers["level"], smoother.smoothed_state[0], rtol=1e-8)
    deviations = np.sqrt(smoother.smoothed_state_cov[0, 0])
    np.testing.assert_allclose(numbers["level std"], deviations, rtol=1e-6)
    np.testing.assert_allclose(numbers["signal mean"], numbers["level"], rtol=1e-9)
    np.testing.assert_array_equal(np.isnan(numbers["observed"]).nonzero()[0], GAPS)


def test_a_picture_of_a_fit_alone_is_of_what_it_found(place, fitted, tmp_path):
    argv = [*data(place), f"--params={place / 'p.json'}"]
    for command in ("fit", "smooth"):
        assert cli.main([command, *argv, f"--figure={tmp_path / command}.svg"]) == 0
    fit, smooth = ((tmp_path / f"{c}.svg").read_text() for c in ("fit", "smooth"))
    assert fit.count("<path") == smooth.count("<path")
    assert fit.count('id="FillBetweenPolyCollection') == 2  # The band, and its sample.


def test_components_add_up(place, fitted):
    argv = ["decompose", *data(place), f"--params={place / 'p.json'}", "--level=0.5"]
    files = [f"--output={place / 'd.npz'}", f"--figure={place / 'd.svg'}"]
    assert cli.main(argv + files) == 0
    found = np.load(place / "d.npz")
    assert found["month"].dtype.kind == "M"
    assert len(found["month"]) == STEPS
    np.testing.assert_allclose(found["level mean"], found["signal mean"])
    total = found["signal mean"] + found["residual"]
    np.testing.assert_allclose(total, found["observed"])


def test_what_has_not_converged_is_written_and_said(place, capsys, tmp_path):
    output = tmp_path / "p.json"
    argv = ["fit", *data(place), MODEL, "--max-iters=1", f"--save-params={output}"]
    assert cli.main(argv) == 1
    assert "not converged" in capsys.readouterr().err
    assert json.loads(output.read_text())["status"] == "max_iters_reached"


def test_future_inputs(tmp_path):
    """A regression with known noise is least squares, and goes on by its inputs."""
    rng = np.random.default_rng(0)
    u, later = rng.normal(size=30), rng.normal(size=8)
    y = 2 * u + 0.1 * rng.normal(size=30)
    pd.DataFrame({"y": y, "u": u}).to_csv(tmp_path / "d.csv", index=False)
    pd.DataFrame({"v": later, "u": later**2}).to_csv(tmp_path / "n.csv", index=False)
    output = tmp_path / "f.csv"
    argv = ["fit", str(tmp_path / "d.csv"), "--column=y", "--inputs=u"]
    argv += ["--model=regression(1)", "--forecast=5", f"--output={output}"]
    assert cli.main([*argv, f"--future={tmp_path / 'n.csv'}"]) == 0
    with open(output) as file:
        found = [float(row["mean"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, (u @ y) / (u @ u) * later[:5] ** 2, rtol=1e-8)


MISTAKES = {
    "constant": ("y\n" + "1.5\n" * 20, [MODEL], "constant, 1.5 throughout"),
    "missing": ("y\n" + "NA\n" * 20, ["--header", MODEL], "no observed value"),
    "one": ("y\n4.5\n", ["--header", MODEL], "needs more than 2"),
    "short": (
        "y\n" + "\n".join(map(str, range(9))),
        ["--column=y", "--model=seasonal(12)"],
        "seasonal needs a series of at least",
    ),
    "text": ("y\n1.5\nabc\n2.5\n", [MODEL], "line 3, column y: 'abc' is not"),
    "twice": (
        "t,y\n2001-01-01,1\n2001-01-01,2\n",
        [MODEL, "--time-column=t"],
        "2001-01-01 is not after the one before it, 2001-01-01; there must be one row",
    ),
    "unsorted": (
        "t,y\n2001-01-02,1\n2001-01-01,2\n",
        [MODEL, "--time-column=t"],
        "2001-01-01 is not after the one before it, 2001-01-02",
    ),
    "name": ("y\n1\n2.5\n1\n", ["--model=leval"], "there is no component 'leval'"),
    "syntax": ("y\n1\n2.5\n1\n", ["--model=level +"], "a model is a sum"),
    "no model": ("y\n1\n2.5\n1\n", [], "say --model"),
    "fixed": ("y\n1\n2.5\n1\n", [MODEL, "--fix=level.x=1"], "no parameter 'level.x'"),
    "columns": ("a,b\n1,2.5\n3,1\n2,2\n", [MODEL], "1 column, and there are 2: a, b"),
    "inputs": (
        "a,b\n1,2.5\n3,1\n2,2\n",
        ["--column=a", "--model=level + regression(1)"],
        "--inputs names 0; say --column and --inputs",
    ),
    "uneven": (
        "t,y\n1,1\n2,5\n3.4,2\n4,1\n5.5,1\n",
        [MODEL, "--time-column=t"],
        "uneven steps",
    ),
    "no times": ("y\n1\n2.5\n1\n", [MODEL, "--spacing=continuous"], "needs times"),
    "params": ("y\n1\n2.5\n1\n", ["--params=data.csv"], "not readable as JSON"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, options, words = MISTAKES[name]
    (tmp_path / "data.csv").write_text(text)
    argv = ["fit", "data.csv", *options, "--forecast=3", "--output=f.csv"]
    assert cli.main([*argv, "--save-params=p.json", "--figure=f.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("elk-ssm: error: ")
    assert error.count("\n") == 1
    assert words in error, error
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["fit", "--output=f.csv"], "--output is for a forecast"),
        (["smooth"], "say --output or --figure"),
        (["fit", "--forecast=0"], "expected an integer from 1"),
        (["fit", "--forecast=3", "--output=f.txt"], "ending in .csv or .npz"),
        (["decompose", "--output=no/f.csv"], "does not exist"),
        (["fit", "--forecast=2", "--output=f.csv", "--future=u.csv"], "with --inputs"),
    ],
)
def test_flags_that_do_not_fit(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("y\n1\n2.5\n1\n2\n4\n")
    command, *rest = options
    assert cli.main([command, "data.csv", MODEL, *rest]) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"level.variance": 1.0}}, "those of the model"),
        ({"parameters": {"level.variance": -1.0, "noise.variance": 1.0}}, "p.json"),
        ({"parameters": {"level.variance": "a", "noise.variance": 1.0}}, "numbers"),
        ({"parameters": {"level.variance": None, "noise.variance": 1.0}}, "a number"),
        ({"model": 3}, "a model as text"),
    ],
)
def test_parameters_that_are_none(change, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("y\n1\n2.5\n1\n2\n4\n")
    good = {"model": "level", "parameters": {"level.variance": 1, "noise.variance": 1}}
    (tmp_path / "p.json").write_text(json.dumps(good | change))
    argv = ["smooth", "data.csv", "--params=p.json", "--output=s.csv"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["data.csv", "p.json"]


def test_a_forecast_that_goes_nowhere_is_refused(place, capsys):
    assert cli.main(["fit", *data(place), MODEL, "--forecast=3"]) == 2
    assert "say --output or --figure" in capsys.readouterr().err


def test_a_file_behind_a_flag_of_several_values_is_missed(place, capsys):
    """The series is then taken for a column."""
    file, time = data(place)
    assert cli.main(["fit", time, MODEL, "--column", "flow", file]) == 2
    assert "FILE comes first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: elk-ssm fit FILE --model SUM")
    assert "seasonal(PERIOD, harmonics=N)" in said


def test_a_search_that_is_cut_off_names_the_flag(place, capsys):
    assert cli.main(["fit", *data(place), MODEL, "--max-iters=1"]) == 1
    assert "raise --max-iters" in capsys.readouterr().err
