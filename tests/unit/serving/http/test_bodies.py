"""Bodies within bounds: what declares or sends too much is cut off, archives stay packed, memory comes back."""

from __future__ import annotations

import asyncio
import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from fastapi import Request
from http_signals import assert_problem, detect, packed, png, recorded, tone
from virtual_clock import run_virtually

from longhaul.errors import UserError
from longhaul.serving.http.intake.archives import find_packed
from longhaul.serving.http.intake.bodies import BodyLimits, read_body
from longhaul.serving.http.intake.sigmf_body import recording_in_archive, recording_in_pair
from longhaul.serving.http.intake.signals import Signal
from longhaul.serving.http.intake.tile_body import tile_pixels
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BodyTooLarge, BrokenImage, BrokenSignal, SlowBody, UnsupportedContentType
from longhaul.signals.recording import open_recording

SIGMF = {"Content-Type": "application/x-sigmf"}


def request_of(receive, **headers) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def read(receive, limits=None, **headers) -> bytes:
    body = asyncio.run(read_body(request_of(receive, **headers), limits or BodyLimits(1000, 100, 5)))
    with body:
        return body.read()


def sending(*blocks: bytes):
    """A `receive` that gives these, and counts in `.given`."""
    rest = list(blocks)

    async def receive():
        receive.given += 1  # type: ignore[attr-defined]
        return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest)}

    receive.given = 0  # type: ignore[attr-defined]
    return receive


def test_a_body_is_the_same_from_memory_and_from_disk() -> None:
    blocks = [bytes([i]) * 60 for i in range(10)]
    for memory in (10, 100, 10_000):
        assert read(sending(*blocks), BodyLimits(1000, memory, 5)) == b"".join(blocks)
    large = bytes(3 << 20)
    assert read(sending(large, b"end"), BodyLimits(1 << 30, 1 << 20, 5)) == large + b"end"


@pytest.mark.parametrize("length", ["1001", "10000000000", "9" * 5000])
def test_a_length_that_is_too_long_is_refused_unread(length) -> None:
    receive = sending(b"x")
    with pytest.raises(BodyTooLarge, match="the limit is 1,000"):
        read(receive, content_length=length)
    assert receive.given == 0


def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    receive = sending(*[b"x" * 100] * 1000)
    with pytest.raises(BodyTooLarge, match="more than 1,000"):
        read(receive)
    assert receive.given == 11


def test_a_body_that_stops_coming_is_given_up() -> None:
    async def receive():
        await asyncio.Event().wait()

    with pytest.raises(SlowBody, match=r"0\.01 s"):
        read(receive, BodyLimits(1000, 100, 0.01))


def test_a_packed_body_is_not_unpacked() -> None:
    receive = sending(gzip.compress(bytes(1 << 20)))
    with pytest.raises(UnsupportedContentType, match="gzip"):
        read(receive, content_encoding="gzip")
    assert receive.given == 0


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.sigmf-meta", bytes(10 << 20))
    return stream.getvalue()


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, link
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def boundless_header() -> bytes:
    """A pax header that says it has 200 MB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 200 << 20
    return header.tobuf(tarfile.USTAR_FORMAT) + bytes(4096)


def extended(kind: bytes, content: bytes) -> bytes:
    """A header that describes the next one, in tar's blocks."""
    member = tarfile.TarInfo("x")
    member.size, member.type = len(content), kind
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def sparse_without_its_map() -> bytes:
    """The header of a file with holes, which says that another one follows."""
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = b"S", 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("body", "refusal", "words"),
    [
        (gzip.compress(bytes(1 << 20)), UnsupportedContentType, "gzip"),
        (zipped(), UnsupportedContentType, "zip"),
        (b"", BrokenSignal, "no tar archive"),
        (b"\0" * 10_240, BrokenSignal, "holds 0"),
        (b"no archive at all" * 100, BrokenSignal, "no tar archive"),
        (tar(("a.sigmf-meta", b"{}"), ("b.sigmf-meta", b"{}")), BrokenSignal, "holds 2"),
        (tar(("a.sigmf-meta", b"{}"), ("b.sigmf-data", b"{}")), BrokenSignal, "one plain .sigmf-data"),
        (tar(("a.sigmf-meta", b"{}"), ("a.sigmf-data", b"x" * 9999))[:4000], BrokenSignal, "within its recording|damaged"),
        (tar(*[(f"m{i}", b"") for i in range(17)]), BodyTooLarge, "more than 16 members"),
        (tar(("a.sigmf-meta", bytes(10 << 20)), ("a.sigmf-data", b"")), BodyTooLarge, "its metadata"),
        (boundless_header(), BrokenSignal, "headers without end"),
        (b"".join(extended(kind, b"6 a=b\n") for kind in (b"x", b"L") for _ in range(100)), BrokenSignal, "damaged"),
        (extended(b"x", b"6 a=b\n" * 10_000) * 5, BrokenSignal, "headers without end"),
        (sparse_without_its_map(), BrokenSignal, "damaged"),
        (sparse_without_its_map() + (bytes(504) + b"\1" + bytes(7)) * 1000, BrokenSignal, "headers without end"),
        (tar(("a.sigmf-meta", b""), ("a.sigmf-data", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"), BrokenSignal, "holds 0"),
    ],
)
def test_archives_that_cannot_be_used(body, refusal, words) -> None:
    with pytest.raises(refusal, match=words):
        find_packed(io.BytesIO(body), "the body", Limits())


def test_headers_without_end_on_disk_are_refused_too(tmp_path) -> None:
    for number, body in enumerate((extended(b"L", b"abc\0") * 1000, sparse_without_its_map())):
        path = tmp_path / f"{number}.sigmf"
        path.write_bytes(body)
        with pytest.raises(UserError, match="not an uncompressed tar archive, or damaged"):
            open_recording(path)


def test_a_members_path_means_nothing(tmp_path) -> None:
    meta = recorded(tmp_path, tone())
    data = meta.with_suffix(".sigmf-data")
    for folder in ("../../../", "/etc/", ""):
        signal = recording_in_archive(io.BytesIO(packed(data, meta, folder=folder)), "the body", Limits())
        np.testing.assert_array_equal(signal.read(5, 3), tone()[5:8])


def pair(meta: dict | bytes, data: bytes = bytes(800)) -> Signal:
    import json

    raw = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    return recording_in_pair(raw, io.BytesIO(data), "the body", Limits())


def metadata(captures=None, **fields) -> dict:
    settings = {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:sample_rate": 1e6}
    settings |= {f"core:{name}": value for name, value in fields.items()}
    kept = {name: value for name, value in settings.items() if value is not None}
    return {"global": kept, "captures": captures or [], "annotations": []}


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "global"),
        (b"[1, 2]", "holds no JSON object"),
        (metadata(datatype="rf32_le"), "real samples"),
        (metadata(datatype=None), "core:datatype"),
        (metadata(datatype={"a": 1}), "core:datatype"),
        (metadata(sample_rate=None), "core:sample_rate is missing"),
        (metadata(sample_rate=0), "core:sample_rate is 0"),
        (metadata(sample_rate=1e12), "sample rate of 1e+12 Hz"),
        (metadata(sample_rate=0.5), "sample rate of 0.5 Hz"),
        (metadata(sample_rate=float("nan")), "is not JSON"),
        (metadata(num_channels=2), "num_channels"),
        (metadata(datatype="ci16_le", trailing_bytes=1), "no whole number"),
        (metadata([{"core:sample_start": 0, "core:frequency": 1e300}]), "1e[+]300"),
        (metadata([{"core:sample_start": 900}]), "outside the data"),
        (metadata([{"core:sample_start": 0, "core:header_bytes": 10**15}]), "holds no samples"),
        (metadata([{"core:sample_start": 0}] * 1001), "1,001 captures"),
        (metadata(metadata_only=True), "metadata_only"),
    ],
)
def test_metadata_that_cannot_be_used(meta, words) -> None:
    with pytest.raises(BrokenSignal, match=words.replace("+", "[+]").replace("[[+]]", "[+]")) as refusal:
        pair(meta)
    assert "/tmp" not in str(refusal.value)
    assert "longhaul-sigmf" not in str(refusal.value)


def test_a_whole_number_may_be_written_as_a_float() -> None:
    captures = [{"core:sample_start": 10.0, "core:header_bytes": 8.0, "core:global_index": 10.0}]
    data = np.arange(400, dtype=np.float32).tobytes()
    signal = pair(metadata(captures, num_channels=1.0, offset=10.0, trailing_bytes=16.0), data)
    assert (signal.recording.samples, signal.offset) == (197, 8)
    np.testing.assert_array_equal(signal.read(0, 2), np.array([2 + 3j, 4 + 5j], np.complex64))
    for value in (8.5, -8.0):
        with pytest.raises(BrokenSignal, match="header_bytes"):
            pair(metadata([{"core:sample_start": 0, "core:header_bytes": value}]))


def test_metadata_take_no_longer_for_what_is_not_needed() -> None:
    meta = metadata(extensions=[{"name": "x", "version": "1", "optional": True}] * 1000, dataset="elsewhere.bin")
    meta["annotations"] = [{"core:sample_start": "no number", "core:comment": "x" * 100}] * 1000
    meta["global"]["other:field"] = [[[]]] * 1000
    signal = pair(meta)
    assert (signal.recording.samples, signal.recording.center_hz) == (100, None)


def test_header_bytes_and_the_archives_offset_add_up(tmp_path) -> None:
    samples = tone()
    meta = metadata([{"core:sample_start": 0, "core:header_bytes": 24, "core:frequency": 2.4e9}])
    signal = pair(meta, bytes(24) + samples.tobytes())
    assert signal.recording.center_hz == 2.4e9
    np.testing.assert_array_equal(signal.read(7, 2), samples[7:9])
    np.testing.assert_array_equal(signal.stretch(1e-3, 2e-3).read(0, 5), samples[1000:1005])
    assert signal.stretch(1e-3, 2e-3).recording.samples == 2000
    with pytest.raises(BrokenSignal, match="nothing from 1 s on"):
        signal.stretch(1, None)


def test_limits_of_samples_and_tiles(serve) -> None:
    small = serve(limits={"samples": 15_000})
    assert_problem(detect(small, tone(2)), 413, "body-too-large", "20,000 samples, the limit is 15,000")
    few = serve(limits={"tiles": 2})
    assert detect(few, tone(2)).status_code == 200
    assert_problem(detect(few, tone(3)), 413, "body-too-large", "more than 2 tiles", "Send 0.02 s at most, or use the stream")
    narrow = serve(limits={"body_bytes": 1000})
    assert_problem(detect(narrow, bytes(1001)), 413, "body-too-large", "1,001 bytes, the limit is 1,000")
    declared = narrow.post("/v1/detect", content=b"x", headers=SIGMF | {"Content-Length": "10000000000"})
    assert_problem(declared, 413, "body-too-large", "10,000,000,000 bytes")


def test_memory_comes_back_after_bad_requests(client) -> None:
    bomb = png(seed=3)[:33] + b"\0" * 2_000
    bodies = [
        ("application/octet-stream", tone(3).tobytes()[:-1]),
        ("application/x-sigmf", gzip.compress(bytes(8 << 20))),
        ("application/x-sigmf", boundless_header()),
        ("application/x-sigmf", tar(("a.sigmf-meta", b"[" * (1 << 20)), ("a.sigmf-data", bytes(1 << 20)))),
        ("image/png", bomb),
        ("application/json", b'{"uri": "/' + b"x" * 9000),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"y" * (1 << 20)),
    ]

    def round_of_all() -> None:
        for kind, body in bodies:
            params = {"datatype": "cf32_le", "sample_rate": 1e6}
            assert 400 <= client.post("/v1/detect", content=body, params=params, headers={"Content-Type": kind}).status_code < 500

    for _ in range(2):
        round_of_all()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(8):
            round_of_all()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1 << 20
    assert peak - before < 64 << 20


def test_a_form_and_its_files_leave_no_open_file(client, tmp_path) -> None:
    import os

    meta = recorded(tmp_path, tone(20))
    files = {"meta": meta.read_bytes(), "data": meta.with_suffix(".sigmf-data").read_bytes()}
    client.post("/v1/detect", files=files)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert client.post("/v1/detect", files=files).status_code == 200
        client.post("/v1/detect", files={"data": files["data"]})
    assert len(os.listdir("/proc/self/fd")) <= before


def interlaced(pixels: np.ndarray, blocks: bytes | None = None) -> bytes:
    """A PNG in grey in Adam7's seven passes (PNG specification, 8.2); `blocks` instead of them where it is to be broken."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, across, down in passes for row in pixels[y::down, x::across])

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *pixels.shape[::-1], 8, 0, 0, 0, 1)
    body = part(b"IDAT", zlib.compress(rows if blocks is None else blocks))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + body + part(b"IEND", b"")


def test_an_interlaced_tile_is_read_and_one_that_is_cut_short_says_so() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    np.testing.assert_array_equal(tile_pixels(interlaced(pixels), 64).numpy(), pixels)
    with pytest.raises(BrokenImage, match=r"truncated.*Save it as a PNG anew"):
        tile_pixels(interlaced(pixels, bytes(64 * 65)), 64)


def test_a_body_that_drips_is_cut_off_although_it_never_pauses_for_long() -> None:
    given = 0

    async def receive():
        nonlocal given
        given += 1
        await asyncio.sleep(4)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def ask() -> None:
        with pytest.raises(SlowBody, match="too slow"):
            await read_body(request_of(receive), BodyLimits(1 << 20, 1 << 20, 10))

    run_virtually(ask)
    assert given == 3
