"""A sweep of two small networks at two resolutions, and its report, written once."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep_maker import ENDS, make_grid

from longhaul.insight.sweep_report.report import Wanted, write_report
from longhaul.resilience.sweep_directory import SweepDirectory

SMALL = ("simple_cnn", "tiny_cnn")
NOTHING_MORE = Wanted(profile=False, explain=False)
_VOID = {"meta", "img", "br", "link"}


class PageReader(HTMLParser):
    """A page's links, pictures and texts; what is opened and never closed, or closed in the wrong order, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.anchors: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.links += [str(given["href"])] if "href" in given else []
        self.pictures += [str(given["src"])] if "src" in given else []
        self.anchors += [str(given["id"])] if "id" in given else []
        self._open += [] if tag in _VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() and "style" not in self._open else []

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def read_page(address: str) -> PageReader:
    """The page at a local address; every picture and page that it leads to is there."""
    page = PageReader(Path(address).read_text(encoding="utf-8"))
    for link in [*page.links, *page.pictures]:
        if link.startswith("#"):
            assert link[1:] in page.anchors, link
        else:
            assert (Path(address).parent / link).is_file(), link
    return page


@pytest.fixture
def small_grid(tmp_path: Path) -> SweepDirectory:
    """Four cells, one of them skipped, nothing drawn yet."""
    return make_grid(
        str(tmp_path / "runs"), models=SMALL, resolutions=(32, 64), ends={("tiny_cnn", 64): ("skipped", "no <chance>")}
    )


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of a grid of five models at two resolutions, in which cells end in every way there is."""
    models = ("resnet18", "mobilenetv2_100", "mobilenetv3_small_100", *SMALL)  # of four families
    ends = {
        ("mobilenetv2_100", 64): ENDS["vgg11", 96],
        ("resnet18", 64): ENDS["resnet34", 96],
        ("mobilenetv3_small_100", 32): ENDS["mobilenetv3_small_100", 32],
        ("tiny_cnn", 64): ENDS["tiny_cnn", 96],
    }
    sweep = make_grid(str(tmp_path_factory.mktemp("sweeps")), models=models, resolutions=(32, 64), ends=ends)
    return write_report(sweep, NOTHING_MORE)
