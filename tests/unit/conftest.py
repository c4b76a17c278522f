"""What the unit tests share: the digits on disk, and a small folder of them for runs of a few steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longhaul.data.digits import default_root, write_digits


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks here are tiny: a second thread only waits, and on a busy machine for ten times as long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The 1,797 digits as class folders, in a cache of this test session (`LONGHAUL_CACHE` points there)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGHAUL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_digits(default_root())


@pytest.fixture(scope="session")
def few_digits(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of the digits: 10 training, 6 validation and 6 test images each."""
    root = tmp_path_factory.mktemp("few")
    for part, count in (("train", 10), ("val", 6), ("test", 6)):
        for digit in "0123":
            (root / part / digit).mkdir(parents=True)
            for file in sorted((digits_root / part / digit).iterdir())[:count]:
                shutil.copy(file, root / part / digit / file.name)
    return root
