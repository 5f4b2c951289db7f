"""Text is read as meant, and asked about where it could mean two things."""

import gzip

import numpy as np
import pandas as pd
import pytest

RNG = np.random.default_rng(0)
FLOATS = pd.DataFrame(RNG.normal(size=(20, 3)))
COUNTS = pd.DataFrame(RNG.poisson(3, size=(20, 3)))
NAMED = FLOATS.set_axis(["a", "b", "c"], axis=1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n1,2\n3,4\n", "2 samples x 2 columns (a, b, header), no gaps"),
        ("1,2.0\n3,4", "2 samples x 2 columns (0, 1, no header), no gaps"),
        (
            "\ufeffa,b\r\n1,2\r\n3,4\r\n",
            "2 samples x 2 columns (a, b, header), no gaps",
        ),
        (
            ' "a" , b\n 1 ,"2"\n\n3,4e0\n\n',
            "2 samples x 2 columns (a, b, header), no gaps, 1 blank line skipped",
        ),
        (
            "a\tb\n1\t2\n3\t4\n",
            "2 samples x 2 columns (a, b, header), no gaps, delimiter tab",
        ),
        (
            "a;b\n1,0;2\n3;4,00\n",
            "2 samples x 2 columns (a, b, header), no gaps, delimiter ;, decimal comma",
        ),
        (
            "1.0 2\n 3   4\n",
            "2 samples x 2 columns (0, 1, no header), no gaps, delimiter white space",
        ),
        (
            '"1,0","2,0"\n"3,0",4\n',
            "2 samples x 2 columns (0, 1, no header), no gaps, decimal comma",
        ),
        ("# a,b\n1.0,2.0\n3.0,4.0\n", "2 samples x 2 columns (a, b, header), no gaps"),
        ("a,b,\n1,2,\n3,4,\n", "2 samples x 2 columns (a, b, header), no gaps"),
    ],
)
def test_dialects(read, text, line):
    recording = read(text)
    np.testing.assert_array_equal(recording.values, [[1, 2], [3, 4]])
    assert recording.line() == line


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_ends_of_lines(read, line_end):
    recording = read(line_end.join(["v", "1.5", "2.5", ""]))
    np.testing.assert_array_equal(recording.values, [[1.5], [2.5]])


@pytest.mark.parametrize(
    ("frame", "expected"), [(FLOATS, "0, 1, 2"), (COUNTS, "0, 1, 2")]
)
def test_a_header_of_whole_numbers_is_asked_about(read, refusal, frame, expected):
    text = frame.to_csv(index=False)
    assert f"the first row is {expected}: names, or a sample? Say --header" in refusal(
        text
    )
    recording = read(text, header=True)
    np.testing.assert_allclose(recording.values, frame.to_numpy())
    assert recording.names == ("0", "1", "2")
    assert read(text, header=False).values.shape == (21, 3)


def test_a_header_of_years_is_asked_about(read, refusal):
    years = COUNTS.set_axis([2001, 2002, 2003], axis=1).to_csv(index=False)
    assert "2001, 2002, 2003: names" in refusal(years)
    np.testing.assert_array_equal(read(years, header=True).values, COUNTS)
    one = COUNTS[[0]].set_axis([1999], axis=1).to_csv(index=False)
    assert "1999: names, or a sample?" in refusal(one)
    dated = "date,2001,2002\n2020-01-01,3,4.5\n2020-01-02,3,4\n"
    assert "mixes numbers with 'date'" in refusal(dated)
    assert "the first row is 0: names" in refusal(FLOATS[0].to_csv(index=False))


@pytest.mark.parametrize(
    "text",
    ["5,6\n7,9\n8,1\n", "0\n0\n1\n0\n", "1.0,2.0\n3.5,4.0\n", "1,2,7\n0,5,1\n9,9,9\n"],
)
def test_whole_numbers_that_are_samples(read, text):
    expected = [list(map(float, row.split(","))) for row in text.split()]
    flags = {"delimiter": ","} if "," in text else {}
    np.testing.assert_array_equal(read(text, **flags).values, expected)


def test_a_name_that_is_a_number_too(read, refusal):
    text = NAMED.set_axis(["1", "2", "3"], axis=1).to_csv(index=False)
    said = refusal(text, columns=("1",), header=True)
    assert "the name of column 0 or the number of column 2: say --by name" in said
    for by, place in (("name", 0), ("number", 1)):
        got = read(text, columns=("1",), header=True, by=by).values
        np.testing.assert_allclose(got[:, 0], FLOATS[place])
    # A name and a number of the same column are no question.
    same = FLOATS.to_csv(index=False)
    got = read(same, columns=("2",), header=True)
    np.testing.assert_allclose(got.values[:, 0], FLOATS[2])


def test_columns_by_name_and_number_in_the_order_asked(read):
    got = read("t,v,w\n0,1,2\n3,4,5\n", columns=("w", "0"))
    np.testing.assert_array_equal(got.values, [[2, 0], [5, 3]])
    assert got.names == ("w", "t")
    text = "2020-01-01,1\n2020-01-02,2\n"
    np.testing.assert_array_equal(read(text, columns=("1",)).values, [[1], [2]])


@pytest.mark.parametrize(
    ("frame", "named"),
    [(NAMED, "column 0 has no name and counts the rows"), (FLOATS, "an empty cell")],
)
def test_the_index_that_pandas_writes_is_asked_about(read, refusal, frame, named):
    text = frame.to_csv()
    assert named in refusal(text)
    said = refusal(text, header=True)
    assert "column 0 has no name and counts the rows" in said
    assert "--time-column 0" in said
    kept = read(text, columns=("1", "2", "3"), by="number", header=True)
    np.testing.assert_allclose(kept.values, frame)
    timed = read(text, time_column="0", by="number", header=True)
    np.testing.assert_allclose(timed.values, frame)
    np.testing.assert_array_equal(timed.time, np.arange(20))


@pytest.mark.parametrize(
    "time", [np.arange(20) * 0.1, np.arange(20) ** 2.0, np.arange(1990, 2010)]
)
def test_a_column_that_rises_is_asked_about(read, refusal, time):
    text = NAMED.assign(x=time).to_csv(index=False)
    assert "column x rises all the way" in refusal(text)
    assert "--time-column x" in refusal(text)
    np.testing.assert_allclose(read(text, columns=("a", "x")).values[:, 1], time)
    timed = read(text, time_column="x")
    np.testing.assert_allclose(timed.time, time)
    assert ("uneven" in timed.line()) == (time[2] == 4)


def test_a_column_of_its_own_may_rise(read):
    assert read("v\n1\n2\n3\n4\n").values.shape == (4, 1)


def test_dates_are_a_time(read, refusal):
    days = pd.date_range("2020-01-01", periods=20)
    text = NAMED.set_index(days).to_csv(index_label="day")
    assert "column day holds dates: say --time-column day" in refusal(text)
    recording = read(text, time_column="day")
    np.testing.assert_array_equal(recording.time, days.to_numpy())
    assert recording.line().endswith("time day from 2020-01-01 to 2020-01-20")
    zoned = "t,v\n2020-01-01T00:00+01:00,1\n2020-01-01T00:00+00:00,2\n"
    steps = np.diff(read(zoned, time_column="t").time)
    assert steps == [np.timedelta64(1, "h")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d,v\n03/04/2020,1\n04/04/2020,2\n", "line 2, column d: '03/04/2020'"),
        (
            "d,v\n2020-01-02,1\n2020-01-01,2\n",
            "line 3, column d: 2020-01-01 is not after",
        ),
        ("d,v\n2,1\n2,2\n", "line 3, column d: 2 is not after the one before it, 2"),
        ("d,v\n2,1\n,2\n", "line 3, column d: there is no time"),
        ("d\n2\n3\n", "no column beside that of the times"),
    ],
)
def test_times_that_are_none(refusal, text, expected):
    assert expected in refusal(text, time_column="d")


def test_a_decimal_comma_without_header_is_asked_about(read, refusal):
    text = "1,5\n2,5\n0,25\n"
    said = refusal(text)
    assert "--delimiter , or --decimal ," in said
    one = read(text, decimal=",").values
    np.testing.assert_array_equal(one, [[1.5], [2.5], [0.25]])
    two = read(text, delimiter=",").values
    np.testing.assert_array_equal(two, [[1, 5], [2, 5], [0, 25]])
    np.testing.assert_array_equal(read("v\n" + text).values, one)
    np.testing.assert_array_equal(read("v,w\n" + text).values, two)


def test_a_comma_between_thousands_is_asked_about(read, refusal):
    text = "v;w\n1,500;2\n2,500;3\n"
    assert "'1,500' could have a decimal comma or a separator of thousands" in refusal(
        text
    )
    np.testing.assert_array_equal(read(text, decimal=",").values, [[1.5, 2], [2.5, 3]])


def test_blank_cells_of_one_column_keep_their_time(read):
    expected = [[1.5], [np.nan], [2.5], [np.nan]]
    for text in ('v\n1.5\n\n2.5\n""\n\n', "1.5\n\n2.5\nNA\n", "\nv\n1.5\n \n2.5\nnan"):
        np.testing.assert_array_equal(read(text).values, expected)
    frame = pd.DataFrame({"v": [1.5, np.nan, 2.5, np.nan]})
    np.testing.assert_array_equal(read(frame.to_csv(index=False)).values, frame)
    np.testing.assert_array_equal(read("\n1.5\n\n2.5\n").values[:2, 0], [np.nan, 1.5])


def test_a_first_gap_is_no_header(read, refusal):
    text = "NA\n1.5\n2.5\n"
    assert "the first row is 'NA': a name, or a gap?" in refusal(text)
    np.testing.assert_array_equal(
        read(text, header=False).values[:, 0], [np.nan, 1.5, 2.5]
    )
    assert read(text, header=True).names == ("NA",)
    both = read("NA,1.5\n2.5,3\n")
    assert both.line().endswith("no header), 1 gap")


def test_gzip(read, refusal):
    text = b"a,b\n1,2\n3,4\n"
    got = read(gzip.compress(text), "data.csv.gz").values
    np.testing.assert_array_equal(got, [[1, 2], [3, 4]])
    assert "not a readable gzip file" in refusal(text, "data.csv.gz")
    cut = gzip.compress(text)[:-9]
    assert "not a readable gzip file" in refusal(cut, "data.csv.gz")


def test_transposed_text(read, refusal):
    rows = RNG.normal(size=(3, 30))
    text = "\n".join(",".join(map(str, row)) for row in rows)
    assert "3 samples of 30 columns" in refusal(text)
    np.testing.assert_array_equal(read(text, transpose=True).values, rows.T)
    np.testing.assert_array_equal(read(text, transpose=False).values, rows)
    assert "--transpose is for files without names" in refusal(
        "a,b\n1,2\n", transpose=True
    )


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("", {}, "the file is empty"),
        ("\n\n", {}, "the file is empty"),
        ("a,b\n", {}, "no rows of numbers"),
        ("a,b\n", {"header": True}, "no rows of numbers"),
        ("# only\n", {}, "no rows of numbers"),
        ("a,b\n1,x\n", {}, "line 2, column b: 'x' is not a finite number"),
        ("a\n1\n-inf\n", {}, "line 3, column a: -inf is not a finite number"),
        ("a\n1_000\n", {}, "'1_000'"),
        ("a\n0x10\n", {}, "'0x10'"),
        ("a\nTrue\n", {}, "'True' is not a finite number"),
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 fields, the first has 2"),
        ("a,b\n1,2\n3,4,5\n", {}, "line 3 has 3 fields"),
        ("a b\n1 2\n3\n", {"delimiter": " "}, "line 3 has 1 fields"),
        ("a,b\n1,2\n\n3,x\n", {}, "line 4, column b: 'x'"),
        ('a,b\n1.0,2\n"1,5",2\n', {}, "Then say --decimal ,"),
        ("a,b\n1,2\n", {"columns": ("c",)}, "the numbers 0 to 1 and the names a, b."),
        (
            "1.5,2\n",
            {"columns": ("2",)},
            "no column '2'; there are the numbers 0 to",
        ),
        ("1.5,2\n", {"columns": ("-1",)}, "no column '-1'"),
        ("1.5,2\n", {"columns": ("",)}, "no column ''"),
        ("a,a\n1,2\n", {"columns": ("a",)}, "several columns are named 'a'"),
        (b"\xff\xfe\x00", {}, "not readable as text"),
        (b"a\n1\x00\n", {}, "not readable as text"),
    ],
)
def test_what_is_wrong_is_said(refusal, text, flags, expected):
    assert expected in refusal(text, **flags)


def test_a_time_column_without_a_name_is_the_time(read):
    text = b",v\n0,1.5\n2,0.5\n4,1.0\n6,2.0\n"
    recording = read(text, "a.csv", time_column="0", columns=("v",))
    assert recording.line().endswith("time from 0 to 6")
    assert recording.time_name == "time"
