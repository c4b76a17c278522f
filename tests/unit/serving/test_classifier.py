"""Bytes in, labels out; what no picture is stays out."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import IntegrityError, UserError
from longhaul.serving.models.classifier import Classifier, ImageLimits
from longhaul.serving.refusals import BrokenImage, ImageTooLarge, InvalidParameter


@pytest.fixture
def classifier(catalog) -> Classifier:
    return catalog.find("tiny").classifier


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_answer_is_the_softmax_of_the_engines_own_logits(classifier, picture, form) -> None:
    body = picture(3, form)
    sample = ImagePreprocess(resolution=8)(Image.open(io.BytesIO(body)))
    logits = classifier.engine.infer(sample[None])["logits"][0].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    answer = classifier(body, top_k=4)
    assert [p.index for p in answer] == list(np.argsort(-expected))
    assert [p.label for p in answer] == [("north", "east", "south", "west")[p.index] for p in answer]
    np.testing.assert_allclose([p.probability for p in answer], sorted(expected, reverse=True), rtol=1e-6)
    assert sum(p.probability for p in answer) == pytest.approx(1)


def test_without_top_k_all_of_a_few_classes_come(classifier, picture) -> None:
    assert len(classifier(picture())) == 4
    assert len(classifier(picture(), top_k=1)) == 1


@pytest.mark.parametrize("top_k", [0, -1, 5])
def test_top_k_out_of_range(classifier, picture, top_k) -> None:
    with pytest.raises(InvalidParameter, match=f"top_k {top_k}: the model has 4 classes"):
        classifier(picture(), top_k)


def test_huge_logits_do_not_overflow(classifier) -> None:
    best = classifier.rank(np.array([1e4, -1e4, 0, 0], np.float32), 1)[0]
    assert (best.label, best.probability) == ("north", 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_the_servers_fault(classifier, bad) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        classifier.rank(np.array([bad, 0, 0, 0], np.float32))


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def flipped(body: bytes) -> bytes:
    return body[:60] + bytes(255 - b for b in body[60:80]) + body[80:]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_file_cut_short_is_broken(classifier, picture, form) -> None:
    with pytest.raises(BrokenImage) as refusal:
        classifier(cut(picture(1, form, (64, 64))))
    assert "0x" not in str(refusal.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the image is empty"),
        (b"hello, this is no picture", "the body is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the body is no image"),
        (b"\x89PNG\r\n\x1a\n", "no image|broken"),
    ],
)
def test_what_is_no_picture_is_named(classifier, body, message) -> None:
    with pytest.raises(BrokenImage, match=message):
        classifier(body)


def test_damaged_bytes_are_broken_and_nothing_else_is_raised(classifier, picture) -> None:
    good = picture(2, size=(64, 64))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        body = bytearray(good)
        for place in rng.integers(0, len(body), 8):
            body[place] = rng.integers(0, 256)
        try:
            classifier(bytes(body))
        except (BrokenImage, ImageTooLarge):
            refused += 1
    assert refused > 100


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` grey pixels that says so in a few bytes and holds no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_000, 12_000, 60_000])
def test_too_many_pixels_are_refused_before_decoding(classifier, side) -> None:
    with pytest.raises(ImageTooLarge, match="pixels"):
        classifier(bomb(side))


def test_too_many_bytes_are_refused(catalog, picture) -> None:
    signature = catalog.find("tiny").manifest.signature
    classifier = Classifier(catalog.find("tiny").engine, signature, ImageLimits(bytes=100))
    with pytest.raises(ImageTooLarge, match="the limit is 100"):
        classifier(picture(0, size=(64, 64)))


def test_other_tasks_and_contradictory_signatures_are_refused(catalog) -> None:
    engine, signature = catalog.find("tiny").engine, catalog.find("tiny").manifest.signature
    with pytest.raises(UserError, match="task 'detection'"):
        Classifier(engine, signature.model_copy(update={"task": "detection"}))
    with pytest.raises(IntegrityError, match="preprocess is no ImagePreprocess"):
        Classifier(engine, signature.model_copy(update={"preprocess": {"side": 8}}))
    with pytest.raises(IntegrityError, match="shapes do not fit"):
        Classifier(engine, signature.model_copy(update={"classes": ("north",)}))
