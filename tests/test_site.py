"""The built site, as a reader sees it: ``make docs``, then ``pytest -m browser``."""

import zlib
from importlib import import_module
from pathlib import Path

import pytest

import steer_lightning
from tests.helpers.browser import CHROMIUM, Browser

SITE = Path(__file__).resolve().parents[1] / "docs" / "_build" / "html"
PACKAGES = ("callbacks", "guard", "horizon", "modules", "nn", "nn.series", "penalties", "solvers")

built = pytest.mark.skipif(
    not (SITE / "index.html").exists(), reason=f"the site is not built: `make docs` ({SITE})"
)
with_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt install chromium`")

BROKEN = """
<p class="math">\\(x\\)</p><img src="absent.png"><div style="width: 2000px">wide</div>
<script>console.error("of the console"); setTimeout(() => { throw Error("late") })</script>
<script src="https://example.invalid/a.js"></script>
"""


@built
def test_every_public_name_is_in_the_reference():
    # An inventory is four lines of text, and lines "name domain:role priority address title".
    listed = zlib.decompress((SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    found = {line.split()[0] for line in listed.splitlines() if " py:" in line}
    public = {
        f"steer_lightning.{package}.{name}"
        for package in PACKAGES
        for name in import_module(f"steer_lightning.{package}").__all__
    }
    last = {name.rpartition(".")[2] for name in found}
    assert public - found == set()
    assert set(steer_lightning.__all__) - last == set()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.browser
@with_browser
def test_a_page_that_is_broken_in_every_way_is_seen_to_be(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(BROKEN)
    faults = "\n".join(browser.faults(page, 390))
    assert "1 of 1 formulas are not set" in faults
    assert "absent.png" in faults
    assert "pixels wider than the window" in faults
    assert "the console says of the console" in faults
    assert "an exception: Uncaught" in faults
    assert "asks the network for https://example.invalid/a.js" in faults
    page.write_text("<p>Nothing is wrong.</p>")
    assert browser.faults(page, 390) == []


@pytest.mark.slow
@pytest.mark.browser
@built
@with_browser
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_every_page_shows_all_of_it(browser, width):
    pages = [path for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts]
    assert len(pages) > 50
    faults = {str(page.relative_to(SITE)): browser.faults(page, width) for page in pages}
    assert {page: found for page, found in faults.items() if found} == {}
