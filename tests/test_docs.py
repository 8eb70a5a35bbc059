"""The Python code in README.md and docs/ runs, page by page, from top to bottom."""

import re
from pathlib import Path

import matplotlib
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("README.md")]

FENCE = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(text):
    """Line number and source of every Python block that is to be run."""
    for match in FENCE.finditer(text):
        if match["skip"] is None:
            yield text.count("\n", 0, match.start("code")), match["code"]


def test_blocks_are_found_and_marked_ones_left_out():
    text = "a\n```python\nx = 1\n```\n<!-- not run: why -->\n```python\n1 / 0\n```\n```\nno\n```\n"
    assert list(blocks(text)) == [(2, "x = 1\n")]


def test_recipes_are_found():
    text = (ROOT / "docs" / "your-model.md").read_text()
    assert len(list(blocks(text))) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    torch.manual_seed(0)
    namespace = {"__name__": "__docs__"}
    for line, code in blocks(page.read_text()):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
