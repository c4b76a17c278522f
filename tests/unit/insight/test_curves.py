"""Pictures: what the lines hold, read from the axes; pixels are not looked at."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from longhaul.errors import UserError
from longhaul.insight.curves import (
    compare_picture,
    comparison_figure,
    confusion_figure,
    curve,
    draw_run,
    smoothed,
    training_figure,
)
from longhaul.resilience.run_directory import RunDirectory

from .conftest import T0, MakeRun, write_steps


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(drawn.get_label()): (list(drawn.get_xdata()), list(drawn.get_ydata())) for drawn in axes.get_lines()}


def test_every_panel_has_its_data(make_run: MakeRun) -> None:
    figure = training_figure(make_run("a").metrics(), title="a", goal="val/top1")
    loss, goal, rate, speed = figure.axes
    steps = list(range(1, 21))
    assert lines(loss)["_raw"] == (steps, pytest.approx([1 / step for step in steps]))
    assert lines(loss)["train/loss"][1] == pytest.approx(smoothed(np.array([1 / step for step in steps])))
    assert lines(loss)["val/loss"] == ([10, 20], pytest.approx([0.1, 0.05]))
    assert lines(goal)["val/top1"] == ([10, 20], pytest.approx([0.9, 0.95]))
    assert lines(rate)["train/lr"] == (steps, [1e-3] * 20)
    assert lines(speed)["train/samples_per_s"] == (steps, pytest.approx([4.0] * 20))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "val/top1", "learning rate", "throughput (samples/s)"]


def test_what_a_restart_undid_is_apart_and_the_rest_is_one_line(make_run: MakeRun) -> None:
    run = make_run("a", steps=15)  # segment 1 reached step 15; the checkpoint was at 9
    write_steps(run, range(10, 21), segment=2, start_s=T0 + 100, offset=5)
    table = run.metrics()
    drawn = curve(table, "train/loss")
    assert list(drawn.steps) == list(range(1, 21))
    assert list(drawn.values) == pytest.approx([1 / s if s < 10 else 5 + 1 / s for s in range(1, 21)])
    ((steps, values),) = drawn.undone
    assert list(steps) == list(range(10, 16))
    assert list(values) == pytest.approx([1 / s for s in range(10, 16)])
    axes = training_figure(table, title="a", goal="val/top1").axes[0]
    assert lines(axes)["restart"][0] == [10, 10]
    undone = [list(drawn.get_xdata()) for drawn in axes.get_lines() if drawn.get_label() == "_undone"]
    assert undone == [list(range(10, 16)), [10]]  # training loss, validation loss


def test_two_restarts_in_a_row(make_run: MakeRun) -> None:
    run = make_run("a", steps=15)
    write_steps(run, range(12, 14), segment=2, start_s=T0 + 100)
    write_steps(run, range(6, 21), segment=3, start_s=T0 + 200, offset=5)
    drawn = curve(run.metrics(), "train/loss")
    assert list(drawn.steps) == list(range(1, 21))
    assert [list(steps) for steps, _ in drawn.undone] == [list(range(6, 16)), [12, 13]]


def test_panels_without_data_are_left_out(make_run: MakeRun) -> None:
    figure = training_figure(make_run("a", steps=5).metrics(), title="a", goal="val/top1")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate", "throughput (samples/s)"]


def test_smoothing_starts_at_the_first_value_and_skips_what_is_not_finite() -> None:
    assert smoothed(np.array([4.0]))[0] == 4.0
    assert smoothed(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    broken = smoothed(np.array([np.nan, 1.0, np.nan, np.inf, 1.0]))
    assert np.isnan(broken[0])
    assert broken[1:] == pytest.approx([1.0] * 4)


def test_the_confusion_matrix_shows_shares_of_rows_and_counts() -> None:
    matrix = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])  # the last class has no sample
    figure = confusion_figure(matrix, ["cat", "dog", "eel"], title="a")
    axes = figure.axes[0]
    shown = np.asarray(axes.get_images()[0].get_array())
    assert shown == pytest.approx(np.array([[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]]))
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {((0, 0), "8"), ((1, 0), "2"), ((1, 1), "5")}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "eel"]
    assert "86.67% of 15 right" in axes.get_title()


def test_many_classes_stay_readable() -> None:
    figure = confusion_figure(np.eye(1000), [f"class {i}" for i in range(1000)], title="a")
    assert len(figure.axes[0].get_xticklabels()) <= 60
    assert not figure.axes[0].texts


def test_draw_run_writes_pictures_and_returns_their_addresses(make_run: MakeRun) -> None:
    run = make_run("a")
    for right in (1, 7):  # the newest counts
        run.add_event("confusion", "on test", segment=1, step=20, split="test", classes=["x", "y"], matrix=[[right, 0], [1, 2]])
    addresses = draw_run(run)
    assert addresses == [f"{run.uri}/pictures/curves.png", f"{run.uri}/pictures/confusion-test.png"]
    for name in ("curves.png", "confusion-test.png"):
        with Image.open(io.BytesIO(run.storage.read_bytes(f"pictures/{name}"))) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400


def test_a_run_without_metrics_has_no_pictures(make_run: MakeRun) -> None:
    assert draw_run(make_run("a", steps=0)) == []


def test_a_comparison_has_a_line_a_run(make_run: MakeRun) -> None:
    tables = {name: make_run(name, scale=scale).metrics() for name, scale in (("a", 1.0), ("b", 2.0))}
    losses, goals = comparison_figure(tables, goal="val/top1").axes
    assert set(lines(losses)) == {"a", "b"}
    assert lines(goals)["b"] == ([10, 20], pytest.approx([0.8, 0.9]))


def test_a_comparison_of_nothing_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="none of these runs has metrics"):
        compare_picture([make_run("a", steps=0), make_run("b", steps=0)])


def test_no_figure_is_registered_with_pyplot(make_run: MakeRun) -> None:
    import matplotlib.pyplot as plt

    run: RunDirectory = make_run("a")
    draw_run(run)
    assert plt.get_fignums() == []
