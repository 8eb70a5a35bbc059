import pytest

from scripts import sweeps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("end_time,accuracy,nfe_forward\n0.5,0.25,8\n1.0,0.5,14\n")
    (tmp_path / "b.csv").write_text("end_time,accuracy\n0.5,0.75\n1.0,1.0\n")
    (tmp_path / "c.csv").write_text("end_time,accuracy\n0.5,0.75\n2.0,1.0\n")
    return tmp_path


def test_tables_of_one_label_are_averaged(folder):
    times, found = sweeps.read_sweeps(["x=a.csv", "y=a.csv", "x=b.csv"], "accuracy")
    assert times == [0.5, 1.0]
    assert found == {"x": [[0.25, 0.5], [0.75, 1.0]], "y": [[0.25, 0.5]]}
    lines = sweeps.table(times, found, "accuracy").splitlines()
    assert lines[0] == "| accuracy | 0.50 | 1.00 |"
    assert lines[2:] == ["| x | 0.500 | 0.750 |", "| y | 0.250 | 0.500 |"]
    (axis,) = sweeps.draw(times, found, "accuracy").axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0.5, 0.75], [0.25, 0.5]]


def test_a_plot_is_written(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweeps.py", "x=a.csv", "--output", "x.png"])
    sweeps.main()
    assert (folder / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert "| x | 0.250 | 0.500 |" in capsys.readouterr().out


def test_tables_that_do_not_fit_raise(folder):
    with pytest.raises(ValueError, match=r"equal end times in all tables, but c\.csv has others"):
        sweeps.read_sweeps(["x=a.csv", "x=c.csv"], "accuracy")
    with pytest.raises(ValueError, match=r"Expected a column 'loss' in a\.csv, but got \['end_t"):
        sweeps.read_sweeps(["x=a.csv"], "loss")
    (folder / "empty.csv").write_text("end_time\n")
    with pytest.raises(ValueError, match=r"Expected a column 'accuracy' in empty\.csv, but got"):
        sweeps.read_sweeps(["x=empty.csv"], "accuracy")
