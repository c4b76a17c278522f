"""A sweep of two small networks at two resolutions, and its report, written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep_maker import ENDS, make_grid

from longhaul.insight.sweep_report.report import Wanted, write_report
from longhaul.resilience.sweep_directory import SweepDirectory
from longhaul.tuning.population.lineage import Best, Donor, Generation, Lineage, Member

SMALL = ("simple_cnn", "tiny_cnn")
LR, AUGMENT, NAME = "training.optimizer.lr", "data.augment", "model.name"
NOTHING_MORE = Wanted(profile=False, explain=False)
_VOID = {"meta", "img", "br", "link"}


class PageReader(HTMLParser):
    """A page's links, pictures (with the sizes that they are given) and texts.

    What is opened and never closed, or closed in the wrong order, is an error.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.sizes: dict[str, tuple[int, int]] = {}
        self.untold: list[str] = []  # pictures without a word for who cannot see them
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
        if tag == "img":
            self.sizes[str(given["src"])] = (int(given["width"] or 0), int(given["height"] or 0))
            self.untold += [] if (given.get("alt") or "").strip() else [str(given["src"])]
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


def write_lineage(sweep: SweepDirectory) -> None:
    """Three members; at epoch 2 the worst goes on from the best with other values, at epoch 4 again."""
    first = {LR: 1e-3, AUGMENT: "none", NAME: "tiny_cnn"}
    copied = [
        Generation(
            number=1, values={**first, LR: 0.08}, since=2.0,
            donor=Donor(member=0, generation=0, checkpoint="c", score=0.6),
        ),
        Generation(
            number=2, values={**first, LR: 0.01, AUGMENT: "crop"}, since=4.0,
            donor=Donor(member=2, generation=0, checkpoint="d", score=0.8),
        ),
    ]  # fmt: skip
    members = [
        Member(number=0, generations=[Generation(number=0, values=first)], scores=[(2.0, 0.6), (4.0, 0.7), (6.0, 0.75)]),
        Member(
            number=1, generations=[Generation(number=0, values={**first, LR: 0.1}), *copied],
            scores=[(2.0, 0.3), (4.0, 0.5), (6.0, 0.85)],
        ),
        Member(number=2, generations=[Generation(number=0, values={**first, LR: 4e-3})], scores=[(2.0, 0.55), (4.0, 0.8)]),
    ]  # fmt: skip
    best = Best(member=1, generation=2, run="population/member-01-002", checkpoint="e", score=0.85)
    Lineage(compared=6.0, members=members, best=best).save(sweep)


@dataclass(frozen=True)
class ExplainedSweep:
    """A sweep with explanations, the address of its report's page, and what the report said that it does."""

    sweep: SweepDirectory
    page: str
    begun: list[tuple[str, int]]


@pytest.fixture(scope="session")
def explained(tmp_path_factory: pytest.TempPathFactory, digits_root: Path) -> ExplainedSweep:
    """One network at two resolutions at which Grad-CAM by itself looks at different layers; tests leave it as it is."""
    root = str(tmp_path_factory.mktemp("explained"))
    sweep = make_grid(root, models=("simple_cnn",), resolutions=(24, 32), ends={}, weights=True)
    begun: list[tuple[str, int]] = []

    def begin(task: str, parts: int) -> Callable[[], None]:
        begun.append((task, parts))
        return lambda: None

    page = write_report(sweep, Wanted(profile=False, explain=True, images=2), begin)
    return ExplainedSweep(sweep, page, begun)


@pytest.fixture
def own_explained(explained: ExplainedSweep, tmp_path: Path) -> SweepDirectory:
    """A copy of the explained sweep, to be changed."""
    shutil.copytree(explained.sweep.root, tmp_path / "runs")
    return SweepDirectory.open(str(tmp_path / "runs"), explained.sweep.name)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of a grid of four models at two resolutions, in which cells end in every way there is."""
    models = ("vgg11", "resnet18", *SMALL)  # of three families
    ends = {
        ("vgg11", 64): ENDS["vgg11", 96],
        ("resnet18", 64): ENDS["resnet34", 96],
        ("simple_cnn", 64): ENDS["mobilenetv3_small_100", 32],
        ("tiny_cnn", 64): ENDS["tiny_cnn", 96],
    }
    sweep = make_grid(str(tmp_path_factory.mktemp("sweeps")), models=models, resolutions=(32, 64), ends=ends)
    return write_report(sweep, NOTHING_MORE)
