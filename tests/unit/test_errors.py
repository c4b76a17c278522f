"""What an error of a library says in the brackets of ours."""

from __future__ import annotations

import pytest

from longhaul.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(RuntimeError("no kernel.\nat line 3"), "no kernel"), (ValueError("plain"), "plain"), (AssertionError(), "AssertionError")],
)
def test_the_first_line_of_an_error_has_no_full_stop_and_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line
