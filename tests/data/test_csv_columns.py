import numpy as np
import pytest

from datamodules.csv_columns import CSVColumns

COLUMNS = ("Time", "Name", "Value")


def table(*lines: str, end: str = "\n") -> CSVColumns:
    return CSVColumns(
        {"a.txt": end.join(["Time,Name,Value", *lines]).encode(errors="surrogateescape")}, COLUMNS
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", [(), ("",), ("", "")])
def test_columns(end, tail):
    t = table("00:00,HR,1.5", "00:07,K,-2", *tail, end=end)
    assert len(t) == 2
    assert t.text("Time").tolist() == ["00:00", "00:07"]
    assert t.codes("Name", {"K": 0, "HR": 7}, "a name").tolist() == [7, 0]
    assert np.array_equal(t.numbers("Value"), [1.5, -2.0])


def test_without_a_header():
    t = CSVColumns({"a.txt": b"x,2\n3,4\n"}, ("a", "b"), has_header=False)
    assert t.numbers("b").tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match=r"Expected a finite number .* as a in line 1 of a\.txt"):
        t.numbers("a")


@pytest.mark.parametrize(
    "lines",
    [
        ("0,a,1", "0,a", "0,b,2"),
        ("0,a,1", "0,a,1,2", "0,b,2"),
        ("0,a,1", "", "0,b,2"),
        # Together as many fields as there should be.
        ("0,a,1", "0,b", "2,0,c,3"),
        ("0,a,1", "0,b,2,0,c", "3"),
        ("0,a,1", "0,\udcff,2"),
    ],
)
def test_lines_of_other_lengths_raise(lines):
    with pytest.raises(ValueError, match=r"3 fields of UTF-8 between commas in line 3 of a\.txt"):
        table(*lines)


@pytest.mark.parametrize("value", ["", "x", "1.2.3", "7_3", "nan", "inf", "-inf", "1e300"])
def test_what_is_no_finite_number_raises(value):
    message = rf"size up to 3.4e\+38 as Value in line 3 of a\.txt, but got '{value}'\. Get"
    with pytest.raises(ValueError, match=message):
        table("0,a,1", f"0,a,{value}", "0,b,nan").numbers("Value")


def test_unknown_names_raise():
    message = r"Expected one of a and b in line 4 of a\.txt, but got 'c'\. Get the file from"
    with pytest.raises(ValueError, match=message):
        table("0,a,1", "0,b,1", "0,c,1", "0,d,1").codes("Name", {"a": 0, "b": 1}, "one of a and b")


@pytest.mark.parametrize("content", [b"", b"Time,Value\n", b"\xff\xfe"])
def test_another_header_raises(content):
    message = "Expected a.txt to start with the line 'Time,Name,Value', but got"
    with pytest.raises(ValueError, match=message):
        CSVColumns({"a.txt": content}, COLUMNS)


def test_lines_are_counted_in_each_file():
    files = {f"{n}.txt": b"Time,Name,Value\n" + b"0,a,1\n" * n for n in (2, 0, 3)}
    assert CSVColumns(files, COLUMNS).counts.tolist() == [2, 0, 3]
    files["3.txt"] = files["3.txt"].replace(b"0,a,1\n0,a,1\n0,a", b"0,a,1\n0,a,1\n0,b")
    with pytest.raises(ValueError, match=r"Expected a in line 4 of 3\.txt, but got 'b'"):
        CSVColumns(files, COLUMNS).codes("Name", {"a": 0}, "a")


@pytest.mark.parametrize("field", ['"a"', '"a', "NA", "null", "", " a ", "#", "\r", "é"])
def test_fields_are_read_as_they_stand(field):
    assert table(f"{field},HR,1").text("Time").tolist() == [field]


@pytest.mark.parametrize("field", ["0.1", "1e-310", "3.141592653589793", "-0.30000000000000004"])
def test_numbers_keep_every_digit(field):
    assert table(f"0,HR,{field}").numbers("Value").tolist() == [float(field)]
