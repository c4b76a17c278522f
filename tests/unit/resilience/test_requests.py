"""What somebody asks of a run stands until it is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.recipe import parse
from longhaul.resilience.requests import answered, ask, asked
from longhaul.resilience.run_directory import RunDirectory

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "r", parse(RECIPE))


def test_a_request_stands_until_it_is_answered(run: RunDirectory) -> None:
    assert asked(run) is None
    request = ask(run, "pause")
    assert asked(run) == request
    answered(run, request)
    assert asked(run) is None


def test_an_answer_never_takes_away_a_later_request(run: RunDirectory) -> None:
    first = ask(run, "pause")
    second = ask(run, "cancel")
    answered(run, first)
    assert asked(run) == second


def test_a_persons_request_stands_before_a_wish_for_a_save(run: RunDirectory) -> None:
    pause = ask(run, "pause")
    assert ask(run, "save") == pause
    assert asked(run) == pause


def test_an_unreadable_request_asks_for_nothing(run: RunDirectory) -> None:
    run.storage.write_bytes("request.json", b'{"kind": "expl')
    assert asked(run) is None
