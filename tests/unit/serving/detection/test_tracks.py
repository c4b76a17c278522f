"""Tracks over chunks: bridging, hopping, concurrency, silence, degraded answers, bounds; and the metrics that judge them."""

from collections.abc import Sequence

import pytest
from annotated_answers import DetectorModel, answers

from longhaul.serving.detection.answers import ChunkAnswer, Claim, Detection, ModelStatus, Status
from longhaul.serving.detection.track_metrics import Sighting, identity_metrics
from longhaul.serving.detection.tracks import Track, Tracker, TrackerSettings
from longhaul.signals.annotations import Annotation

CHUNK_S, SIDE = 0.01, 100  # a pixel is 0.1 ms


def box(label: str, start_ms: float, end_ms: float, center_mhz: float, width_mhz: float = 1.0, **changes: object) -> Detection:
    """A detection in milliseconds and megahertz of the stream; its tile's pixels are 0.1 ms and 0.1 MHz."""
    low, high = center_mhz - width_mhz / 2, center_mhz + width_mhz / 2
    values = {
        "label": label,
        "model": "m",
        "score": 0.9,
        "box_px": (0.0, 0.0, 10 * (end_ms - start_ms), 10 * width_mhz),
        "start_s": start_ms / 1e3,
        "end_s": end_ms / 1e3,
        "low_hz": low * 1e6,
        "high_hz": high * 1e6,
    }
    return Detection.model_validate(values | changes)


def chunk(index: int, *detections: Detection, status: Status = Status.ON_TIME) -> ChunkAnswer:
    return ChunkAnswer(
        index=index,
        start_s=index * CHUNK_S,
        duration_s=CHUNK_S,
        degraded=status is not Status.ON_TIME,
        seconds=0.0,
        models=(ModelStatus(model="m", version="1", status=status),),
        detections=detections,
    )


def run(tracker: Tracker, chunks: Sequence[ChunkAnswer]) -> list[Track]:
    for one in chunks:
        tracker.update(one)
    return tracker.tracks()


def tell_all(**changes: object) -> TrackerSettings:
    return TrackerSettings.model_validate({"confirm": 1, **changes})


def test_a_burst_over_the_end_of_a_chunk_is_one_burst() -> None:
    tracks = run(
        Tracker(tell_all()),
        [chunk(0, box("wifi", 8, 10, 20, 16)), chunk(1, box("wifi", 10.1, 13, 20.3, 16)), chunk(2, box("wifi", 21, 23, 20, 16))],
    )
    assert [(track.bursts, track.hops) for track in tracks] == [(2, 0)]
    assert (tracks[0].first_s, tracks[0].last_s) == (0.008, 0.023)


def test_a_burst_that_lasts_for_chunks_is_one_burst_and_does_not_grow_the_tracker() -> None:
    tracker = Tracker(tell_all())
    tracks = run(tracker, [chunk(k, box("lte_uplink", 10 * k, 10 * k + 10, 5, 2)) for k in range(50)])
    assert [track.bursts for track in tracks] == [1]
    assert tracks[0].last_s == pytest.approx(0.5)
    assert len(tracker._active[0].burst.detections) <= 1


def test_bursts_on_both_sides_of_a_border_that_share_no_band_are_two() -> None:
    tracks = run(Tracker(tell_all()), [chunk(0, box("lte_uplink", 8, 10, 5)), chunk(1, box("lte_uplink", 10, 12, 7))])
    assert [track.bursts for track in tracks] == [1, 1]


def test_a_sweep_goes_on_where_its_frequency_was() -> None:
    up = [chunk(0, box("creamy_chicken", 8, 10, 5, 2)), chunk(1, box("creamy_chicken", 10, 12, 7, 2))]
    tracks = run(Tracker(tell_all()), up)
    assert [(track.bursts, track.center_hz, track.bandwidth_hz) for track in tracks] == [(1, 6e6, 4e6)]


def test_pieces_of_one_burst_on_neighbouring_tiles_are_one() -> None:
    in_time = [box("wifi", 2, 5, 20, 16, tile=0), box("wifi", 5, 7, 20, 16, tile=1)]
    in_frequency = [box("wifi", 2, 7, 16, 8, tile=0), box("wifi", 2, 7, 24, 8, tile=1)]
    for pieces in (in_time, in_frequency):
        tracker = Tracker(tell_all())
        tracks = run(tracker, [chunk(0, *pieces)])
        assert [(track.bursts, track.center_hz, track.bandwidth_hz) for track in tracks] == [(1, 20e6, 16e6)]
        assert tracker.assigned == {0: 1, 1: 1}


def test_a_hopping_label_keeps_its_track_over_frequencies_and_another_does_not() -> None:
    hops = [3.0, 30.0, 12.0, 25.0]
    for label, expected in (("bluetooth", [(4, 3)]), ("wifi", [(1, 0)] * 4)):
        tracks = run(Tracker(tell_all()), [chunk(0, *(box(label, 2 * k, 2 * k + 1, hop) for k, hop in enumerate(hops)))])
        assert [(track.bursts, track.hops) for track in tracks] == expected


def test_a_track_takes_nothing_while_it_transmits() -> None:
    """The third burst is where the first one is, which is still on the air: it can only be the second one's emitter, hopping."""
    tracker = Tracker(tell_all())
    run(tracker, [chunk(0, box("bluetooth", 1, 8, 3), box("bluetooth", 2, 3, 30), box("bluetooth", 4, 5, 3.2))])
    assert tracker.assigned == {0: 1, 1: 2, 2: 2}


def test_staying_is_cheaper_than_hopping() -> None:
    first = chunk(0, box("bluetooth", 1, 4, 3), box("bluetooth", 1, 4, 30))
    second = chunk(1, box("bluetooth", 11, 14, 30), box("bluetooth", 11.5, 14, 3))
    tracker = Tracker(tell_all())
    run(tracker, [first, second])
    assert tracker.assigned == {0: 2, 1: 1}
    assert [track.hops for track in tracker.tracks()] == [0, 0]


def test_bursts_at_once_are_assigned_together_at_the_lowest_cost() -> None:
    """Taken one by one, the burst at 10.4 MHz would take the track at 10 MHz, and nothing would be left for the one at 9.6."""
    first = chunk(0, box("wifi", 1, 4, 10, 2), box("wifi", 1, 4, 11, 2))
    second = chunk(1, box("wifi", 11, 14, 10.4, 2), box("wifi", 11.1, 14, 9.2, 2))
    tracker = Tracker(tell_all())
    run(tracker, [first, second])
    assert tracker.assigned == {0: 2, 1: 1}


def test_a_track_is_told_from_its_second_sighting_with_the_id_it_had() -> None:
    tracker = Tracker()
    assert tracker.update(chunk(0, box("wifi", 1, 2, 20, 16))) == []
    assert tracker.tracks() == []
    assert [track.id for track in tracker.update(chunk(1, box("wifi", 11, 12, 20, 16)))] == [1]
    assert tracker.update(chunk(2)) == []


def test_a_silent_track_ends_and_its_id_is_not_used_again() -> None:
    tracker = Tracker(tell_all(timeout_s=0.03))
    tracker.update(chunk(0, box("wifi", 1, 2, 20, 16)))
    ended = [track for index in range(1, 6) for track in tracker.update(chunk(index))]
    assert [(track.id, track.active) for track in ended] == [(1, False)]
    assert [track.id for track in tracker.update(chunk(6, box("wifi", 61, 62, 20, 16)))] == [2]
    assert [(track.id, track.active) for track in tracker.tracks()] == [(1, False), (2, True)]


@pytest.mark.parametrize("status", [Status.LATE, Status.SHED, Status.FAILED])
def test_time_in_which_a_model_did_not_look_is_no_silence(status: Status) -> None:
    tracker = Tracker(tell_all(timeout_s=0.03))
    tracker.update(chunk(0, box("wifi", 1, 2, 20, 16)))
    for index in range(1, 30):
        assert tracker.update(chunk(index, status=status)) == []
    assert [track.id for track in tracker.update(chunk(30, box("wifi", 301, 302, 20, 16)))] == [1]


def test_chunks_that_never_came_are_no_silence_and_nothing_is_bridged_over_them() -> None:
    tracker = Tracker(tell_all(timeout_s=0.03))
    tracks = run(tracker, [chunk(0, box("wifi", 8, 10, 20, 16)), chunk(20, box("wifi", 200, 202, 20, 16))])
    assert [(track.id, track.bursts) for track in tracks] == [(1, 2)]


def test_a_burst_with_a_merged_claim_of_the_tracks_label_goes_on_with_it() -> None:
    claim = (Claim(model="other", label="wifi", score=0.6),)
    tracks = run(
        Tracker(tell_all()),
        [chunk(0, box("wifi", 1, 2, 20, 16)), chunk(1, box("lte_uplink", 11, 12, 20, 16, score=0.7, also=claim))],
    )
    assert [(track.label, track.bursts) for track in tracks] == [("wifi", 2)]


def test_detections_without_a_time_are_left_out() -> None:
    bare = Detection(label="wifi", model="m", score=0.9, box_px=(1, 1, 5, 5))
    assert Tracker(tell_all()).update(chunk(0, bare)) == []


def test_an_endless_stream_of_new_emitters_needs_bounded_memory() -> None:
    tracker = Tracker(tell_all(active_most=8, ended_most=5, timeout_s=100.0))
    for index in range(200):
        tracker.update(chunk(index, *(box("wifi", 10 * index + 1, 10 * index + 2, 3 * k + 100 * index) for k in range(4))))
        assert len(tracker._active) <= 8
    assert len(tracker.tracks()) == 13
    assert max(track.id for track in tracker.tracks()) == 800


def emitters(chunks: int) -> list[Annotation]:
    """Two Wi-Fi channels, a hopping piconet, a user on fixed blocks and a chirper, at 40 MHz, some over the chunks' borders."""
    rate, boxes = 40e6, []

    def add(emitter: str, start_ms: float, ms: float, center_mhz: float, width_mhz: float) -> None:
        low, high = (center_mhz - width_mhz / 2) * 1e6, (center_mhz + width_mhz / 2) * 1e6
        label = emitter.partition("/")[0]
        boxes.append(Annotation(label, round(start_ms * rate / 1e3), round(ms * rate / 1e3), low, high, emitter))

    for k in range(chunks):
        add("wifi/1", 10 * k + 8.5, 3.1, -12, 16)  # over every border
        add("wifi/11", 10 * k + 3, 2, 10, 16)
        add("bluetooth/0", 10 * k + 0.625, 1.6, 18 - (7 * k) % 36, 1)
        add("bluetooth/0", 10 * k + 6.25, 2.8, (11 * k) % 36 - 18, 1)
        add("lte_uplink/0", 10 * k + 2, 2, 0, 4)
        add("creamy_chicken/0", 10 * k + 9.2, 1.7, 4, 6)
    return sorted(boxes, key=lambda one: one.start)


def sightings(chunks: int, detector: DetectorModel) -> list[Sighting]:
    tracker, found = Tracker(), []
    for seen in answers(emitters(chunks), chunks, 400_000, 40e6, detector):
        tracker.update(seen.answer)
        found += [Sighting(one.emitter, None if place is None else tracker.assigned[place]) for one, place in seen.truths]
    return found


@pytest.mark.parametrize("jitter_px", [0.0, 0.7])
def test_separate_emitters_keep_their_identity_over_50_chunks(jitter_px: float) -> None:
    metrics = identity_metrics(sightings(60, DetectorModel(jitter_px=jitter_px)))
    assert (metrics.emitters, metrics.tracks, metrics.kept) == (5, 5, 5)
    assert (metrics.switches, metrics.fragmentations) == (0, 0)
    assert metrics.idf1 == 1.0
    assert metrics.sightings >= 60 * 6


def test_missed_bursts_fragment_and_do_not_switch() -> None:
    metrics = identity_metrics(sightings(60, DetectorModel(drop=0.2, seed=3)))
    assert metrics.kept == metrics.emitters == 5
    assert metrics.switches == 0
    assert metrics.fragmentations > 20


def test_the_same_answers_give_the_same_tracks() -> None:
    seen = [one.answer for one in answers(emitters(20), 20, 400_000, 40e6, DetectorModel(0.1, 1.0, 2.0))]
    assert run(Tracker(), seen) == run(Tracker(), seen)


def told(text: str) -> list[Sighting]:
    """`a1 b2 a- -3`: emitter a on track 1, b on 2, a missed, a false alarm on 3."""
    pairs = [(word[0], word[1:]) for word in text.split()]
    return [Sighting(None if who == "-" else who, None if track == "-" else int(track)) for who, track in pairs]


@pytest.mark.parametrize(
    ("events", "switches", "fragmentations", "idf1", "kept"),
    [
        ("a1 b2 a1 b2", 0, 0, 1.0, 2),
        ("a1 a1 a2 a2", 1, 0, 0.5, 0),  # IDTP 2 of 4 and 4
        ("a1 a- a1 a-", 0, 1, 2 * 2 / (4 + 2), 1),
        ("a- a1 a1 a-", 0, 0, 2 * 2 / (4 + 2), 1),
        ("a1 a- a2", 1, 1, 2 * 1 / (3 + 2), 0),
        ("a1 b2 a2 b1", 2, 0, 0.5, 0),
        ("a1 b1 a1 b1", 0, 0, 0.5, 0),  # two emitters on one track
        ("a1 -1 a1 -2", 0, 0, 2 * 2 / (2 + 4), 1),
        ("a- b-", 0, 0, 0.0, 0),
        ("", 0, 0, 1.0, 0),
    ],
)
def test_the_metrics_of_small_cases_are_those_of_their_definitions(
    events: str, switches: int, fragmentations: int, idf1: float, kept: int
) -> None:
    metrics = identity_metrics(told(events))
    assert (metrics.switches, metrics.fragmentations, metrics.kept) == (switches, fragmentations, kept)
    assert metrics.idf1 == pytest.approx(idf1)


def test_detections_carry_the_number_of_their_track() -> None:
    tracker = Tracker()
    answers = [chunk(k, box("wifi", 10 * k + 1, 10 * k + 2, 40, 16), box("lte", 10 * k + 5, 10 * k + 6, 60)) for k in range(3)]
    marked = [tracker.follow(answer) for answer in answers]
    numbers = [tuple(one.track for one in answer.detections) for answer, _ in marked]
    assert len(set(numbers)) == 1
    assert set(numbers[0]) == {track.id for track in tracker.tracks()}
    assert all(one.track is None for one in answers[0].detections)
