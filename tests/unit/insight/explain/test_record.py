"""What is kept of an explanation vouches for itself: damage, and maps of another explanation, are found and computed anew."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from longhaul.errors import IntegrityError, UserError
from longhaul.insight.explain.cell import explain_run
from longhaul.insight.explain.record import Kept, load_explanation, load_kept, save
from longhaul.resilience.run_directory import RunDirectory

METHODS = ("gradcam", "saliency")
MAPS = "explanation.npz"


def _again(run: RunDirectory) -> None:
    """Explains it as it was explained; what is there afterwards is whole."""
    explain_run(run, 2, ["gradcam", "saliency"])
    assert load_kept(run).grid.keys() == set(METHODS)


def test_damaged_maps_are_named_with_what_to_do_and_explained_anew(explained_run: RunDirectory) -> None:
    whole = explained_run.storage.read_bytes(MAPS)
    for damaged in (b"", bytes(100), whole[:-300], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]):
        explained_run.storage.write_bytes(MAPS, damaged)
        with pytest.raises(IntegrityError, match=r"explanation\.npz: .*; explain the run again: longhaul explain "):
            load_kept(explained_run)
    _again(explained_run)


def test_damage_that_a_checksum_vouches_for_is_found_by_the_reader(explained_run: RunDirectory) -> None:
    """As of a file that was damaged before it was written."""
    whole, explanation = explained_run.storage.read_bytes(MAPS), load_explanation(explained_run)
    assert explanation is not None
    for damaged in (b"", bytes(100), whole[:-300], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]):
        stamped = explanation.model_copy(update={"maps_sha256": hashlib.sha256(damaged).hexdigest()})
        explained_run.storage.write_bytes(MAPS, damaged)
        explained_run.storage.write_bytes("explanation.json", stamped.model_dump_json().encode())
        with pytest.raises(IntegrityError, match=r"explanation\.npz: .*; explain the run again: longhaul explain "):
            load_kept(explained_run)


def test_maps_of_another_explanation_are_not_taken_for_those_of_this_one(explained_run: RunDirectory) -> None:
    """As after a kill between the two files while the run is explained with another seed."""
    first = explained_run.storage.read_bytes("explanation.json")
    explain_run(explained_run, 2, METHODS, seed=5)
    explained_run.storage.write_bytes("explanation.json", first)
    with pytest.raises(IntegrityError, match=r"its SHA-256 is not the one in explanation\.json"):
        load_kept(explained_run)
    _again(explained_run)
    assert explained_run.storage.read_bytes("explanation.json") == first


def test_maps_of_another_shape_than_the_explanation_says_are_refused(explained_run: RunDirectory) -> None:
    explanation, kept = load_explanation(explained_run), load_kept(explained_run)
    assert explanation is not None
    for strange, told in (
        (Kept(kept.images[:1], kept.grid, kept.shown), r"grid/gradcam is of|images is of shape \(1, 32, 32, 3\)"),
        (Kept(kept.images, {m: maps[:, :8] for m, maps in kept.grid.items()}, kept.shown), r"shape \(2, 8, 16\)"),
        (Kept(kept.images, kept.grid, {m: maps[:, :8] for m, maps in kept.shown.items()}), r"shape \(2, 8, 32\)"),
        (Kept(kept.images, {"gradcam": kept.grid["gradcam"]}, {"gradcam": kept.shown["gradcam"]}), "grid/saliency"),
    ):
        save(explained_run, explanation, strange, {})
        with pytest.raises(IntegrityError, match=told):
            load_kept(explained_run)


@pytest.mark.parametrize("gone", ["explanation.json", MAPS])
def test_an_explanation_of_which_a_file_is_gone_is_none(explained_run: RunDirectory, gone: str) -> None:
    explained_run.storage.delete_file(gone)
    with pytest.raises(UserError, match="is not explained yet"):
        load_kept(explained_run)
    _again(explained_run)


def test_pictures_of_methods_that_are_no_longer_there_go_and_others_stay(explained_run: RunDirectory) -> None:
    explained_run.write_picture("confusion.png", b"a picture")
    kept = load_kept(explained_run)
    explanation = explain_run(explained_run, 2, ["saliency"], seed=5)
    names = [entry.name for entry in explained_run.storage.list("pictures")]
    assert names == ["confusion.png", "explain.png", "explain_saliency.png"]
    assert explanation.maps_sha256
    assert not np.array_equal(load_kept(explained_run).grid["saliency"], kept.grid["saliency"])
