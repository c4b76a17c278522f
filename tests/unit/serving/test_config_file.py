"""A config that is edited while it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.errors import UserError
from longhaul.serving.config_file import ConfigFile


def test_a_change_is_given_once_and_a_wrong_one_told_once(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("one")

    def load() -> str:
        text = path.read_text()
        if text == "wrong":
            raise UserError("wrong", "correct it")
        return text

    file = ConfigFile(path, load)
    assert file.renewed() is None
    path.write_text("another")
    assert file.renewed() == "another"
    assert file.renewed() is None
    path.write_text("wrong")
    with pytest.raises(UserError):
        file.renewed()
    assert file.renewed() is None
    path.unlink()
    assert file.renewed() is None
    path.write_text("one more")
    assert file.renewed() == "one more"


def test_a_config_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        ConfigFile(tmp_path / "serve.yaml", lambda: None)
