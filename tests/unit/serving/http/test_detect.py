"""`POST /v1/detect`: every way to bring a signal gives the same answer, and what cannot be used is told."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from http_signals import IQ, OCTETS, assert_problem, detect, local_client, packed, png, recorded, tone

from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.http.answers import DetectAnswer
from longhaul.signals.sample_format import SampleFormat


def answered(response) -> DetectAnswer:
    assert response.status_code == 200, response.text
    answer = DetectAnswer.model_validate_json(response.content)
    assert not answer.degraded, answer.chunks
    return answer


def found(response) -> list:
    return [chunk.detections for chunk in answered(response).chunks]


def test_the_answer_is_the_ensembles_own(client, detectors) -> None:
    samples = tone(2.6)
    expected = []
    for index, start in enumerate(range(0, len(samples), CHUNK_SAMPLES)):
        iq = torch.from_numpy(samples[start : start + CHUNK_SAMPLES].copy())
        chunk = SignalChunk(iq, SAMPLE_RATE_HZ, 2.44e9, index, start / SAMPLE_RATE_HZ)
        expected.append(asyncio.run(detectors.ensemble.detect(chunk, deadline_s=30)).detections)
    response = detect(client, samples, deadline_ms=30_000)
    assert found(response) == expected
    assert sum(map(len, expected)) > 10
    answer = answered(response)
    assert (answer.samples, answer.sample_rate_hz, answer.center_hz, answer.frequencies) == (26_000, 1e6, 2.44e9, "absolute")
    assert [chunk.start_s for chunk in answer.chunks] == [0, 0.01, 0.02]
    assert answer.duration_s == pytest.approx(0.026)
    assert {model.model for model in answer.chunks[0].models} == {"grid", "wide"}


def test_every_road_gives_the_same_answer(serve, tmp_path) -> None:
    samples = tone(2)
    meta = recorded(tmp_path, samples)
    data = meta.with_suffix(".sigmf-data")
    archive = packed(meta, data, folder="roof/")
    (tmp_path / "roof.sigmf").write_bytes(archive)
    client = serve(roots=(str(tmp_path),))
    expected = found(detect(client, samples))
    described = {
        "X-SigMF-Datatype": "cf32_le",
        "X-SigMF-Sample-Rate": "1e6",
        "X-SigMF-Center-Frequency": "2.44e9",
    }
    assert found(client.post("/v1/detect", content=samples.tobytes(), headers=OCTETS | described)) == expected
    for kind in ("application/x-sigmf", "application/x-tar"):
        assert found(client.post("/v1/detect", content=archive, headers={"Content-Type": kind})) == expected
    pair = {"meta": ("a", meta.read_bytes()), "data": ("b", data.read_bytes())}
    assert found(client.post("/v1/detect", files=pair)) == expected
    assert found(client.post("/v1/detect", data={"meta": meta.read_text()}, files={"data": data.read_bytes()})) == expected
    for uri in (meta, data, tmp_path / "roof.sigmf"):
        assert found(client.post("/v1/detect", json={"uri": str(uri)})) == expected


@pytest.mark.parametrize("datatype", ["ci16_le", "ci16_be", "ci8", "cu8", "cf64_be", "ci32_le", "cf32"])
def test_every_datatype_is_read_as_sigmf_says(client, datatype) -> None:
    samples = tone(1)
    raw, _ = SampleFormat.parse(datatype).encode(samples)
    answer = answered(detect(client, raw.tobytes(), datatype=datatype))
    assert answer.samples == CHUNK_SAMPLES
    assert len(answer.chunks[0].detections) > 3
    assert bool(answer.notes) == (datatype == "cf32")


def test_without_a_centre_frequencies_are_relative(client) -> None:
    response = client.post("/v1/detect?datatype=cf32_le&sample_rate=1e6", content=tone().tobytes(), headers=OCTETS)
    answer = answered(response)
    assert (answer.center_hz, answer.frequencies) == (None, "relative")
    assert all(abs(one.center_hz) < 0.5e6 for one in answer.chunks[0].detections)


def test_a_tile_has_pixels_and_no_seconds(client) -> None:
    answer = answered(client.post("/v1/detect", content=png(), headers={"Content-Type": "image/png"}))
    assert (answer.frequencies, answer.samples, len(answer.chunks)) == (None, 0, 1)
    assert answer.chunks[0].detections
    assert all(one.start_s is None and one.low_hz is None for one in answer.chunks[0].detections)


def test_models_are_chosen_by_name(client) -> None:
    answer = answered(detect(client, tone(), models="wide"))
    assert [model.model for model in answer.chunks[0].models] == ["wide"]
    assert {one.label for one in answer.chunks[0].detections} == {"wide"}
    assert_problem(detect(client, tone(), models="wire"), 404, "unknown-model", "'wire'", "Did you mean 'wide'?")
    assert_problem(detect(client, tone(), models="tiny"), 409, "wrong-task", "'tiny': is no detector", "grid, wide")
    assert_problem(detect(client, tone(), models=","), 422, "invalid-parameter", "names none")
    both = answered(detect(client, tone(), models=" wide , grid"))
    assert [model.model for model in both.chunks[0].models] == ["grid", "wide"]
    for many in ("x" * 129, ",".join(["grid"] * 65)):
        assert_problem(detect(client, tone(), models=many), 422, "invalid-parameter", "more than 64 names")


def test_a_parameter_that_is_misspelt_or_there_twice_is_told(client) -> None:
    assert_problem(detect(client, tone(), center_freq=1e9), 422, "invalid-parameter", "query.center_freq")
    for name, values in (("models", ["grid", "wide"]), ("sample_rate", [1e6, 1e6])):
        assert_problem(detect(client, tone(), **{name: values}), 422, "invalid-parameter", f"'{name}' is there 2 times")


def test_tracks_come_when_they_are_asked_for(client) -> None:
    assert answered(detect(client, tone(3))).tracks is None
    assert answered(detect(client, tone(3), tracks=True)).tracks


def test_the_end_is_a_chunk_if_it_is_half_of_one(client) -> None:
    answer = answered(detect(client, tone(1.5)))
    assert [chunk.duration_s for chunk in answer.chunks] == [0.01, 0.005]
    answer = answered(detect(client, tone(1.4)))
    assert (len(answer.chunks), answer.left_out_s) == (1, pytest.approx(0.004))
    assert_problem(detect(client, tone(0.4)), 400, "broken-signal", "4000 samples are too few", "half a chunk of 0.01 s")


def test_a_deadline_may_be_asked_for_within_bounds(serve) -> None:
    client = serve(max_deadline_s=2)
    answered(detect(client, tone(), deadline_ms=2000))
    assert_problem(detect(client, tone(), deadline_ms=2001), 422, "invalid-parameter", "2001", "Ask for 10 to 2000")
    assert_problem(detect(client, tone(), deadline_ms=1e-9), 422, "invalid-parameter", "1e-09")
    for bad in (0, -1, "nan", "soon"):
        assert_problem(detect(client, tone(), deadline_ms=bad), 422, "invalid-parameter", "deadline_ms")


def test_what_would_come_too_late_is_refused_with_a_time_to_come_again(client, detectors, monkeypatch) -> None:
    monkeypatch.setattr(detectors.ensemble, "forecast_s", lambda models=None: 3.9)
    response = detect(client, tone())
    body = assert_problem(response, 503, "overloaded", "3.9 s", "0.4 s")
    assert response.headers["retry-after"] == "4"
    assert body["retry_after_s"] == pytest.approx(3.5)
    answered(detect(client, tone(), deadline_ms=5000))


def test_a_failing_model_is_told_and_its_words_stay_in_the_log(client, detectors, monkeypatch, caplog) -> None:
    def fail(batch):
        raise ValueError("secret: /srv/models/wide")

    monkeypatch.setattr(detectors.find("wide").engine, "infer", fail)
    response = detect(client, tone())
    answer = DetectAnswer.model_validate_json(response.content)
    assert response.status_code == 200
    assert answer.degraded
    assert {model.model: str(model.status) for model in answer.chunks[0].models} == {"grid": "on_time", "wide": "failed"}
    assert "secret" not in response.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("query", "status", "slug", "words"),
    [
        ({"datatype": "rf32_le"}, 422, "invalid-parameter", "real samples"),
        ({"datatype": "cf16_le"}, 422, "invalid-parameter", "no datatype"),
        ({"datatype": None}, 422, "invalid-parameter", "datatype is missing"),
        ({"sample_rate": None}, 422, "invalid-parameter", "sample_rate is missing"),
        ({"sample_rate": 0}, 422, "invalid-parameter", "sample_rate"),
        ({"sample_rate": -1}, 422, "invalid-parameter", "sample_rate"),
        ({"sample_rate": "nan"}, 422, "invalid-parameter", "sample_rate"),
        ({"sample_rate": "inf"}, 422, "invalid-parameter", "sample_rate"),
        ({"sample_rate": 1e300}, 400, "broken-signal", "1e+300 Hz"),
        ({"sample_rate": 1}, 400, "broken-signal", "a sample rate of 1 Hz"),
        ({"sample_rate": 2000}, 400, "broken-signal", "under nfft 64"),
        ({"center_frequency": "inf"}, 422, "invalid-parameter", "center_frequency"),
        ({"center_frequency": 1e13}, 422, "invalid-parameter", "center_frequency"),
    ],
)
def test_a_wrong_description_is_told(client, query, status, slug, words) -> None:
    asked = {name: value for name, value in (IQ | query).items() if value is not None}
    response = client.post("/v1/detect", content=tone().tobytes(), params=asked, headers=OCTETS)
    assert_problem(response, status, slug, words)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_a_sample_that_no_receiver_gives_is_named(client, bad) -> None:
    samples = tone(2)
    samples.view(np.float32)[2 * 12_345 + 1] = bad
    assert_problem(detect(client, samples), 400, "broken-signal", "sample 12345 is")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "is empty"), (tone().tobytes()[:-3], "79,997 bytes are no whole number of cf32_le samples")],
)
def test_a_body_cut_short_is_told(client, body, words) -> None:
    assert_problem(detect(client, body), 400, "broken-signal", words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"no png", "no PNG"),
        (png()[:-40], "broken"),
        (png(size=(65, 64)), "65 x 64 pixels, the detectors take 64 x 64"),
        (png(mode="RGB"), "kind RGB"),
        (png(mode="1"), "kind 1"),
        (png(mode="I;16"), "kind I;16"),
    ],
)
def test_a_tile_that_is_none(client, body, words) -> None:
    assert_problem(client.post("/v1/detect", content=body, headers={"Content-Type": "image/png"}), 400, "broken-image", words)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/gzip", "image/jpeg", "application/x-www-form-urlencoded"])
def test_other_content_types_are_refused(client, kind) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/v1/detect", content=b"abc", headers=headers)
    assert_problem(response, 415, "unsupported-content-type", repr(kind or "(none)"), "application/octet-stream")


def test_a_form_without_its_files(client, tmp_path) -> None:
    meta = recorded(tmp_path, tone())
    response = client.post("/v1/detect", files={"meta": meta.read_bytes()})
    assert_problem(response, 400, "broken-signal", "no file in the field 'data'")
    response = client.post("/v1/detect", files={"data": b"x"}, data={"other": "y"})
    assert_problem(response, 400, "broken-signal", "no file in the field 'meta'")
    response = client.post("/v1/detect", content=b"--y", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert_problem(response, 400, "bad-request")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"[]", "uri"),
        (b'{"uri": "http://x/y"}', "uri"),
        (b'{"uri": "/x", "path": "/y"}', "path"),
        (b'{"uri": "/x\\u0000y"}', "uri"),
        (b'{"uri": "/x", "start_s": -1}', "start_s"),
        (b'{"uri": "/x", "start_s": 1e999}', "start_s"),
        (json.dumps({"uri": "/" + "x" * 3000}).encode(), "uri"),
    ],
)
def test_a_reference_that_is_none(client, body, words) -> None:
    response = client.post("/v1/detect", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "invalid-parameter", words)


def test_where_no_detector_is_served(catalog) -> None:
    from longhaul.serving.http.api import build_api
    from longhaul.serving.http.settings import ApiSettings

    with local_client(build_api(catalog, ApiSettings(open_loopback=True))) as client:
        assert_problem(detect(client, tone()), 404, "no-detector", "GET /v1/models")
