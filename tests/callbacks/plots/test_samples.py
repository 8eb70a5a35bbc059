import signal

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text
from pytorch_lightning import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader

from steer_lightning.callbacks import SampleGrid, SampleWriter
from steer_lightning.modules import ImageFlowModule
from steer_lightning.solvers import FixedGridSolver
from tests.callbacks.plots.drawing import make_cnf, make_trainer, toy_data
from tests.helpers.models import image_flow, lively


class Shrink(nn.Module):
    """``f = y log 2 / 2``: from the base back to the data, two blocks halve the state."""

    def __init__(self, channels):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0).log() / 2)

    def forward(self, t, y):
        return self.rate * y


def make_module(**settings):
    return ImageFlowModule(lively(image_flow(**settings)))


def grey_images(n=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 1, 4, 4), generator=generator).float()


def loader(n=8):
    return DataLoader(grey_images(n), batch_size=4)


def test_rows_are_one_noise_at_each_temperature():
    flow = image_flow(vector_field=Shrink, solver=FixedGridSolver("rk4", 8))
    with torch.no_grad():
        rows = SampleGrid(n_samples=500, temperatures=[1.0, 0.5]).rows(flow)
    full, half = (2.0 * flow.logit(row)[0] for row in rows)
    torch.testing.assert_close(half, 0.5 * full, atol=1e-3, rtol=1e-3)
    assert full.shape == (500, 1, 4, 4)
    assert full.mean().abs() < 4.0 / 8000**0.5
    assert (full.std() - 1.0).abs() < 4.0 / 16000**0.5


@torch.no_grad()
def test_noise_depends_on_its_seed_alone():
    flow, found = make_module().flow, []
    for callback_seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        rows = SampleGrid(2, seed=callback_seed).rows(flow)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(torch.stack(rows))
    assert found[0].shape == (4, 2, 1, 4, 4)
    assert torch.equal(found[0], found[1])
    assert not torch.isclose(found[0], found[2]).any()


def test_images_of_a_wide_base_are_clamped_and_have_the_flows_precision():
    (row,) = SampleGrid(4, [1e3]).rows(make_module(alpha=0.05).double().flow)
    assert (row.min(), row.max(), row.dtype) == (0.0, 1.0, torch.float64)


def test_plot_shows_every_image_and_label():
    greys = torch.tensor([0.2, 0.4, 0.8])[:, None, None, None].expand(3, 1, 4, 4)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 3, 4, 4)
    callback = SampleGrid(3, [1.0, 0.5])
    callback.rows = lambda flow: [greys, red]
    figure = callback.draw(make_module(), None)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    for colour in ((51, 51, 51), (102, 102, 102), (204, 204, 204), (255, 0, 0)):
        assert (pixels == colour).all(-1).sum() > 1000
    labels = {text.get_text() for text in figure.findobj(Text)}
    assert {"temperature 1", "temperature 0.5"} <= labels


def test_writer_writes_each_batch(tmp_path):
    module = make_module()
    predicted = make_trainer(tmp_path, SampleWriter()).predict(module, loader(6))
    folder = tmp_path / "run/v/samples"
    names = ["0_0.png", "0_0.pt", "0_1.png", "0_1.pt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for i, n in enumerate((4, 2)):
        written = torch.load(folder / f"0_{i}.pt", weights_only=True)
        assert torch.equal(written, predicted[i])
        assert written.shape == (n, 1, 4, 4)
        assert 0.0 <= written.min() < written.max() <= 1.0
        plot = torch.tensor(imread(folder / f"0_{i}.png"))[..., 0]
        assert plot.shape == (8, 6 * n + 2)  # a row, with borders of two pixels
        last = plot[2:6, -6:-2]
        torch.testing.assert_close(last, written[-1, 0], atol=0.5 / 255 + 1e-6, rtol=0.0)


def test_writer_tells_loaders_apart(tmp_path):
    class Several(ImageFlowModule):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return super().predict_step(batch, batch_idx)

    module = Several(image_flow())
    make_trainer(tmp_path, SampleWriter()).predict(module, [loader(6), loader(2)])
    written = (tmp_path / "run/v/samples").glob("*.pt")
    assert sorted(path.name for path in written) == ["0_0_0.pt", "0_0_1.pt", "0_1_0.pt"]


def test_writer_without_a_logger_writes_to_the_root(tmp_path):
    make_trainer(tmp_path, SampleWriter(), logger=False).predict(make_module(), loader(2))
    assert (tmp_path / "samples/0_0.pt").is_file()


def test_sigterm_ends_a_prediction_after_the_batch_in_hand(tmp_path):
    class Stop(Callback):
        def on_predict_batch_start(self, *_):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SIGTERMException):
        make_trainer(tmp_path, SampleWriter(), Stop()).predict(make_module(), loader(6))
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["0_0.pt"]


class Flat(ImageFlowModule):
    def predict_step(self, batch, batch_idx):
        return super().predict_step(batch, batch_idx).flatten(1)


@pytest.mark.parametrize(
    ("make", "batches", "got"),
    [
        (make_cnf, toy_data(), "CNFModule gave dict"),
        (lambda: Flat(image_flow()), loader(), "Flat gave Tensor"),
    ],
)
def test_writer_refuses_what_is_no_image(tmp_path, make, batches, got):
    message = rf"predictions to be images \(B, C, H, W\), but {got}.* Leave SampleWriter out"
    with pytest.raises(TypeError, match=message):
        make_trainer(tmp_path, SampleWriter()).predict(make(), batches)
