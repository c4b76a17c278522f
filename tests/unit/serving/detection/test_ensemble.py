"""The ensemble: one spectrogram for all, answers that hold what is ready, members that come and go."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest
import torch
from grid_detector import CELL, CHUNK_SAMPLES, SAMPLE_RATE_HZ, SIDE, TILES, publish_grid_detector
from pydantic import PrivateAttr
from still_members import Still, ensemble_of, signal, told, wayward
from virtual_clock import run_virtually

from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble import Ensemble, EnsembleSettings, Member
from longhaul.serving.models.loading import make_engine
from longhaul.serving.queueing.batching import Batcher
from longhaul.serving.refusals import InvalidParameter, UnknownModel
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import Corners
from longhaul.signals.tile_folder import TileSettings


def details(answer: ChunkAnswer) -> dict[str, str | None]:
    return {part.model: part.detail for part in answer.models}


@pytest.mark.parametrize("cut", [(1, 1), (2, 2)])
def test_real_detectors_give_what_can_be_reckoned_by_hand(tmp_path, cut) -> None:
    tiles = TILES.model_copy(update={"front_end": FrontEnd(nfft=64, hop=32, tile=SIDE, cut=cut)})
    registry = Registry(str(tmp_path))
    members, batchers = [], []
    for name, classes in (("grid", ("even", "odd")), ("coarse", ("signal",))):
        manifest = publish_grid_detector(registry, name, classes=classes, gain=1.6 if name == "grid" else 1.5, tiles=tiles)
        files = registry.fetch(manifest, tmp_path / f"files-{name}")
        batchers.append(Batcher(make_engine(manifest, files, "onnxruntime", threads=1)))
        members.append(Member(name, "1", classes, batchers[-1]))
    chunk = signal(start_s=2.0, center_hz=1e9)

    async def scenario() -> ChunkAnswer:
        ensemble = Ensemble(members, tiles, EnsembleSettings(deadline_s=20))
        answer = await ensemble.detect(chunk)
        ensemble.close()
        return answer

    answer = asyncio.run(scenario())
    for batcher in batchers:
        batcher.close()
    grey = tiles.front_end.to_uint8(chunk.iq).view(-1, SIDE, SIDE).numpy() / 255
    wanted = {}
    for tile, row, column in np.ndindex(len(grey), SIDE // CELL, SIDE // CELL):
        x, y = column * CELL, row * CELL
        mean = grey[tile, y : y + CELL, x : x + CELL].mean()
        score = min(1.6 * mean, 1.0)
        if score > 0.5:
            geometry = tiles.front_end.geometry(CHUNK_SAMPLES, SAMPLE_RATE_HZ, tile)
            region = geometry.region(Corners(x, y, x + CELL, y + CELL))
            label = ("even", "odd")[(row * (SIDE // CELL) + column) % 2]
            wanted[tile, x, y] = (label, score, region, 1.5 * mean > 0.5)
    assert len(wanted) > 3
    assert not answer.degraded
    assert {(d.tile, *map(int, d.box_px[:2])) for d in answer.detections} == set(wanted)
    for detection in answer.detections:
        label, score, region, twice = wanted[detection.tile, int(detection.box_px[0]), int(detection.box_px[1])]
        assert (detection.model, detection.label) == ("grid", label)
        assert detection.score == pytest.approx(score, abs=1e-5)
        assert (detection.start_s, detection.end_s) == pytest.approx((2 + region.start_s, 2 + region.end_s))
        assert (detection.low_hz, detection.high_hz) == pytest.approx((1e9 + region.low_hz, 1e9 + region.high_hz))
        assert [claim.model for claim in detection.also] == (["coarse"] if twice else [])


def test_every_member_gets_the_same_tiles_with_the_numbers_of_training() -> None:
    a, b = Still(), Still()
    chunk = signal()
    run_virtually(lambda: ensemble_of(a=a, b=b).detect(chunk))
    assert a.tiles[0] is b.tiles[0]
    assert torch.equal(a.tiles[0], TILES.front_end.to_uint8(chunk.iq).float().div(255).view(1, 1, SIDE, SIDE))


def test_a_failing_member_fails_alone() -> None:
    nonsense = Still(score=float("nan"))
    broken = Still(error=RuntimeError("out of memory"))
    answer = run_virtually(lambda: ensemble_of(broken=broken, nonsense=nonsense, well=Still()).detect(signal()))
    assert told(answer) == {"broken": "failed", "nonsense": "failed", "well": "on_time"}
    assert answer.degraded
    assert [d.model for d in answer.detections] == ["well"]
    assert details(answer)["broken"] == "out of memory"
    assert "not finite" in str(details(answer)["nonsense"])
    seconds = {part.model: part.seconds for part in answer.models}
    assert seconds == {"broken": None, "nonsense": None, "well": pytest.approx(0.01)}


def test_a_late_front_end_makes_all_late_and_the_answer_comes_all_the_same() -> None:
    runner = Still()
    answer = run_virtually(lambda: ensemble_of(tiles=wayward(take_s=3.0), a=runner, b=Still()).detect(signal()))
    assert told(answer) == {"a": "late", "b": "late"}
    assert answer.seconds <= 0.4
    assert "tiles" in str(details(answer)["a"])
    assert not runner.tiles


def test_a_broken_front_end_is_told_like_a_broken_engine() -> None:
    answer = run_virtually(lambda: ensemble_of(tiles=wayward(breaks=True), a=Still()).detect(signal()))
    assert told(answer) == {"a": "failed"}
    assert details(answer)["a"] == "front end: no room for a spectrogram"


def test_the_deadline_of_a_request_goes_before_the_settings() -> None:
    slow = Still(delay_s=0.3)

    async def scenario() -> None:
        one = ensemble_of(slow=slow)
        assert told(await one.detect(signal(), deadline_s=0.1)) == {"slow": "late"}
        await asyncio.sleep(0)
        assert slow.cancelled == 1  # nobody waits for it any more
        assert told(await one.detect(signal())) == {"slow": "on_time"}

    run_virtually(scenario)
    assert slow.deadlines[0] == pytest.approx(0.1, abs=0.03)  # the runner knows when merging begins


def test_a_chosen_few_answer_in_the_order_of_the_ensemble_and_unknown_names_are_refused() -> None:
    one = ensemble_of(wifi=Still(), lte=Still(), radar=Still())
    for names in (["radar", "wifi", "radar"], {"wifi", "radar"}):
        assert list(told(run_virtually(lambda names=names: one.detect(signal(), models=names)))) == ["wifi", "radar"]
    with pytest.raises(UnknownModel, match="Did you mean 'radar'"):
        run_virtually(lambda: one.detect(signal(), models=["rader"]))


def test_another_sample_rate_than_in_training_is_told() -> None:
    runner = Still()
    odd = SignalChunk(signal().iq, 2e6)
    members = [Member("known", "1", ("a",), runner, sample_rates_hz=(1e6, 5e6)), Member("unknown", "1", ("a",), runner)]
    answer = run_virtually(lambda: Ensemble(members, TILES).detect(odd))
    assert details(answer) == {
        "known": "trained at 1, 5 MHz, not at 2 MHz: its pixels meant other bands and times",
        "unknown": None,
    }
    assert not answer.degraded
    assert details(run_virtually(lambda: Ensemble(members, TILES).detect(signal()))) == {"known": None, "unknown": None}


def test_a_client_that_leaves_cancels_what_has_not_begun() -> None:
    runner = Still(delay_s=None)

    async def scenario() -> None:
        request = asyncio.create_task(ensemble_of(a=runner).detect(signal()))
        await asyncio.sleep(0.1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert request.cancelled()
        assert runner.cancelled == 1

    run_virtually(scenario)


def test_a_chunk_shorter_than_a_frame_and_signals_without_a_front_end_are_the_clients_mistakes() -> None:
    with pytest.raises(UserError, match="shorter than nfft"):
        run_virtually(lambda: ensemble_of(a=Still()).detect(signal(samples=10)))
    with pytest.raises(UserError, match="Send tiles"):
        run_virtually(lambda: ensemble_of(tiles=None, a=Still()).detect(signal()))


@pytest.mark.parametrize("tiles", [TILES, None])
def test_a_tile_alone_is_answered_in_pixels(tiles) -> None:
    runner = Still()
    tile = torch.randint(0, 256, (SIDE, SIDE), dtype=torch.uint8)
    answer = run_virtually(lambda: ensemble_of(tiles=tiles, a=runner).detect_tile(tile))
    (detection,) = answer.detections
    assert detection.box_px == (8, 8, 24, 16)
    assert detection.start_s is None
    assert answer.duration_s == 0
    assert torch.equal(runner.tiles[0][0, 0], tile.float() / 255)


def test_a_tile_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="32 x 16 pixels"):
        run_virtually(lambda: ensemble_of(a=Still()).detect_tile(torch.zeros(16, 32, dtype=torch.uint8)))


def test_a_new_version_answers_at_once_and_what_is_in_flight_ends_on_the_old_one() -> None:
    async def scenario() -> list[str]:
        one = ensemble_of(a=Still(delay_s=0.2))
        first = asyncio.create_task(one.detect(signal()))
        await asyncio.sleep(0.1)
        one.replace(Member("a", "2", ("a",), Still()))
        second = await one.detect(signal())
        assert not first.done()
        return [answer.models[0].version for answer in (await first, second)]

    assert run_virtually(scenario) == ["1", "2"]


def test_members_join_and_names_differ() -> None:
    one = ensemble_of(a=Still())
    one.replace(Member("b", "1", ("b",), Still()))
    assert [member.name for member in one.members] == ["a", "b"]
    with pytest.raises(UserError):
        Ensemble([], TILES)
    with pytest.raises(UserError):
        Ensemble([*one.members, *one.members], TILES)


def test_a_version_on_other_tiles_brings_them_along_and_what_is_in_flight_ends_on_the_old_ones() -> None:
    other = TILES.model_copy(update={"front_end": FrontEnd(nfft=128, hop=64, tile=2 * SIDE)})
    old, new = Still(delay_s=0.2), Still()

    async def scenario() -> None:
        one = ensemble_of(a=old)
        first = asyncio.create_task(one.detect(signal()))
        await asyncio.sleep(0.1)
        one.replace(Member("a", "2", ("a",), new), other)
        assert one.tiles == other
        answers = [await one.detect(signal()), await first]
        assert [answer.models[0].version for answer in answers] == ["2", "1"]
        one.replace(Member("a", "3", ("a",), new))
        assert one.tiles == other

    run_virtually(scenario)
    assert old.tiles[0].shape[-1] == SIDE
    assert new.tiles[0].shape[-1] == 2 * SIDE


def test_tiles_that_become_known_make_signals_welcome() -> None:
    one = ensemble_of(tiles=None, a=Still())
    one.replace(Member("a", "2", ("a",), Still()), TILES)
    assert told(run_virtually(lambda: one.detect(signal()))) == {"a": "on_time"}


def test_labels_that_may_coexist_both_stay() -> None:
    settings = EnsembleSettings(coexist=(("b", "a"),))
    answer = run_virtually(lambda: ensemble_of(settings, a=Still(), b=Still()).detect(signal()))
    assert [d.label for d in answer.detections] == ["a", "b"]


def test_observers_see_tiles_own_detections_and_the_answer_after_it_has_gone_out(caplog) -> None:
    seen = []

    def broken(*_) -> None:
        raise RuntimeError("cannot see")

    async def scenario() -> ChunkAnswer:
        one = ensemble_of(a=Still(), b=Still(score=0.8), gone=Still(error=RuntimeError()))
        one.observers += [broken, lambda *what: seen.append(what)]
        answer = await one.detect(signal())
        assert not seen
        await asyncio.sleep(0)
        return answer

    with caplog.at_level(logging.ERROR):
        answer = run_virtually(scenario)
    ((tiles, found, observed),) = seen
    assert observed is answer
    assert tiles.shape == (1, 1, SIDE, SIDE)
    assert {model: [d.score for d in own] for model, own in found.items()} == {
        "a": [pytest.approx(0.9)],
        "b": [pytest.approx(0.8)],
    }
    assert [d.model for d in answer.detections] == ["a"]  # merged
    assert "observer" in caplog.text


class Slow(FrontEnd):
    """Its first call takes longer than all others."""

    _seen: list[int] = PrivateAttr(default_factory=list)

    def to_uint8(self, iq: torch.Tensor) -> torch.Tensor:
        time.sleep(0 if self._seen else 0.3)
        self._seen.append(len(iq))
        return super().to_uint8(iq)


def test_the_front_end_is_warm_before_the_first_chunk_and_nothing_is_learned_from_that() -> None:
    front_end = Slow(nfft=64, hop=32, tile=SIDE)
    one = ensemble_of(tiles=TileSettings.model_construct(front_end=front_end, chunk_s=0.01), a=Still(delay_s=0))
    assert front_end._seen == [CHUNK_SAMPLES]
    answer = asyncio.run(one.detect(signal()))
    assert told(answer) == {"a": "on_time"}
    assert one._front.times.seconds(1) < 0.3
    one.close()


def test_so_is_another_front_end_and_what_the_old_one_took_is_forgotten() -> None:
    one = ensemble_of(a=Still(delay_s=0))
    asyncio.run(one.detect(signal()))
    front_end = Slow(nfft=64, hop=64, tile=SIDE)
    one.replace(one.members[0], TileSettings.model_construct(front_end=front_end, chunk_s=0.01))
    assert one._front.times.seconds(1) == 0
    one._front.start().result()  # behind the warming up
    assert front_end._seen == [CHUNK_SAMPLES]
    one.close()
