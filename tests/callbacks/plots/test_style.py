import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from steer_lightning.callbacks.plots.style import COLOURS, legend_below, panels, save_figure


@pytest.mark.parametrize("n_labels", [1, 3, 9])
def test_the_legend_names_each_label_once_and_lies_below_all_axes(n_labels):
    figure, [axes] = panels(1, 2, (6, 3))
    for axis in axes:
        axis.set_xlabel("time t")
        for i in range(n_labels):
            axis.plot([0.0, 1.0], [0.0, i], label=f"line {i}")
        axis.plot([0.0, 1.0], [0.0, -1.0])  # without a name
    legend_below(figure)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"line {i}" for i in range(n_labels)
    ]
    box = legend.get_window_extent()
    assert box.y0 >= 0.0
    assert all(box.y1 <= axis.get_tightbbox().y0 for axis in axes)
    assert figure.get_figheight() > 3.0


def test_without_labels_there_is_no_legend():
    figure, [[axis]] = panels(1, 1, (3, 3))
    axis.plot([0.0, 1.0], [0.0, 1.0])
    legend_below(figure)
    assert figure.legends == []
    assert figure.get_figheight() == 3.0


def test_lines_go_through_the_colours():
    _, [[axis]] = panels(1, 1, (3, 3))
    drawn = [axis.plot([0.0, 1.0], [0.0, i])[0].get_color() for i in range(11)]
    assert [to_hex(colour) for colour in drawn] == [*COLOURS, COLOURS[0]]


def test_a_figure_is_written_as_the_same_files_each_time(tmp_path):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        figure, [[axis]] = panels(1, 1, (3, 3))
        axis.plot([0.0, 1.0], [0.0, 1.0], marker="o", label="line")
        save_figure(figure, folder / "plot.png")
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert files[0].keys() == {"plot.png", "plot.svg"}
    assert files[0]["plot.svg"].startswith(b"<?xml")
