"""The ensemble: one spectrogram for all, answers that hold what is ready, members that come and go."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest
import torch

from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.batching import Batcher
from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble import Ensemble, EnsembleSettings, Member, SheddingSettings, common_tiles
from longhaul.serving.loading import make_engine
from longhaul.serving.refusals import InvalidParameter, UnknownModel
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import Corners
from longhaul.signals.tile_folder import TileSettings
from tests.shared.grid_detector import CELL, CHUNK_SAMPLES, SAMPLE_RATE_HZ, SIDE, TILES, publish_grid_detector
from tests.shared.virtual_clock import run_virtually


def signal(seed: int = 0, samples: int = CHUNK_SAMPLES, **place) -> SignalChunk:
    """Noise with a tone that comes and goes."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / SAMPLE_RATE_HZ
    iq = 0.01 * (rng.standard_normal(samples) + 1j * rng.standard_normal(samples))
    iq += 0.5 * np.exp(2j * np.pi * 2e5 * time) * (np.sin(2 * np.pi * 300 * time + seed) > 0)
    return SignalChunk(torch.from_numpy(iq.astype(np.complex64)), SAMPLE_RATE_HZ, **place)


class Still:
    """Answers one box a tile after `delay_s` (None: never), with a label of its own; remembers the tiles."""

    def __init__(self, delay_s: float | None = 0.01, error: Exception | None = None, score: float = 0.9) -> None:
        self.delay_s, self.error, self.score = delay_s, error, score
        self.tiles: list[torch.Tensor] = []
        self.deadlines: list[float | None] = []
        self.cancelled = 0
        self.expected = 0.01
        self.seconds_per_sample = 0.01

    def expected_s(self, samples: int) -> float:
        return self.expected

    async def infer(self, samples: torch.Tensor, *, deadline: float | None) -> dict[str, np.ndarray]:
        self.tiles.append(samples)
        self.deadlines.append(deadline)
        try:
            if self.delay_s is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        n = len(samples)
        boxes = np.tile(np.float32([[[8, 8, 24, 16]]]), (n, 1, 1))
        return {"boxes": boxes, "scores": np.full((n, 1), self.score, np.float32), "labels": np.ones((n, 1), np.int32)}


def ensemble_of(settings: EnsembleSettings | None = None, tiles: TileSettings | None = TILES, **runners: Still) -> Ensemble:
    members = [Member(name, "1", (name,), runner, sample_rates_hz=(SAMPLE_RATE_HZ,)) for name, runner in runners.items()]
    return Ensemble(members, tiles, settings)


def told(answer: ChunkAnswer) -> dict[str, str]:
    return {part.model: part.status.value for part in answer.models}


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


class Wayward(FrontEnd):
    """A front end that takes `take_s`, or raises."""

    take_s: float = 0.0
    breaks: bool = False

    def to_uint8(self, iq: torch.Tensor) -> torch.Tensor:
        asyncio.get_running_loop().take(self.take_s)
        if self.breaks:
            raise MemoryError("no room for a spectrogram")
        return super().to_uint8(iq)


def wayward(**how) -> TileSettings:
    return TileSettings.model_construct(front_end=Wayward(nfft=64, hop=32, tile=SIDE, **how), chunk_s=0.01)


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


def test_a_chosen_few_answer_in_the_order_of_the_request_and_unknown_names_are_refused() -> None:
    one = ensemble_of(wifi=Still(), lte=Still(), radar=Still())
    assert list(told(run_virtually(lambda: one.detect(signal(), models=["radar", "wifi", "radar"])))) == ["radar", "wifi"]
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


def test_members_join_and_leave_but_the_last_one_stays() -> None:
    one = ensemble_of(a=Still())
    one.replace(Member("b", "1", ("b",), Still()))
    assert [member.name for member in one.members] == ["a", "b"]
    one.remove("a")
    with pytest.raises(UserError):
        one.remove("b")
    with pytest.raises(UserError):
        one.remove("nobody")
    with pytest.raises(UserError):
        Ensemble([], TILES)
    with pytest.raises(UserError):
        Ensemble([*one.members, *one.members], TILES)


SHEDDING = EnsembleSettings(shedding=SheddingSettings(window_s=10, least_answers=8, wait_s=15))


def test_under_lasting_misses_the_dear_member_is_shed_and_tried_again_when_it_is_well() -> None:
    dear, cheap = Still(delay_s=1.0), Still()
    dear.seconds_per_sample, dear.expected = 0.5, 1.0

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=cheap)
        for _ in range(8):
            assert told(await one.detect(signal())) == {"dear": "late", "cheap": "on_time"}
        answer = await one.detect(signal())
        assert told(answer) == {"dear": "shed", "cheap": "on_time"}
        assert answer.degraded
        assert {state.name: state.shed for state in one.states()} == {"dear": True, "cheap": False}
        assert one.forecast_s() < 0.1
        await asyncio.sleep(30)
        assert told(await one.detect(signal()))["dear"] == "shed"  # its forecast is still too long
        dear.delay_s, dear.expected = 0.05, 0.05
        assert told(await one.detect(signal()))["dear"] == "on_time"

    run_virtually(scenario)


def test_another_version_of_a_shed_member_is_asked_at_once() -> None:
    dear = Still(delay_s=1.0)
    dear.seconds_per_sample = 0.5

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=Still())
        for _ in range(9):
            answer = await one.detect(signal())
        assert told(answer)["dear"] == "shed"
        one.replace(Member("dear", "2", ("dear",), Still()))
        assert told(await one.detect(signal()))["dear"] == "on_time"

    run_virtually(scenario)


def test_labels_that_may_coexist_both_stay() -> None:
    settings = EnsembleSettings(coexist=(("b", "a"),))
    answer = run_virtually(lambda: ensemble_of(settings, a=Still(), b=Still()).detect(signal()))
    assert [d.label for d in answer.detections] == ["a", "b"]


def test_value_saves_a_dear_member_and_the_settings_say_what_it_is_worth() -> None:
    dear, cheap = Still(delay_s=1.0), Still()
    dear.seconds_per_sample = 0.5

    async def scenario() -> str:
        one = ensemble_of(SHEDDING.model_copy(update={"values": {"dear": 1000.0}}), dear=dear, cheap=cheap)
        for _ in range(9):
            answer = await one.detect(signal())
        return told(answer)["cheap"]

    assert run_virtually(scenario) == "shed"


def test_requests_with_less_time_than_is_promised_shed_nobody() -> None:
    async def scenario() -> dict[str, str]:
        one = ensemble_of(SHEDDING, a=Still(delay_s=0.1), b=Still(delay_s=0.1))
        for _ in range(100):
            await one.detect(signal(), deadline_s=0.05)
            await asyncio.sleep(0.05)
        return told(await one.detect(signal()))

    assert run_virtually(scenario) == {"a": "on_time", "b": "on_time"}


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


def test_the_forecast_is_the_soonest_member_behind_the_front_end() -> None:
    async def scenario() -> tuple[float, float]:
        slow, quick = Still(), Still()
        slow.expected, quick.expected = 0.3, 0.1
        one = ensemble_of(tiles=wayward(take_s=0.05), slow=slow, quick=quick)
        before = one.forecast_s()
        await one.detect(signal())
        return before, one.forecast_s()

    before, after = run_virtually(scenario)
    assert before == pytest.approx(0.102)
    assert after == pytest.approx(0.152)


def test_models_that_want_other_tiles_cannot_share_an_ensemble() -> None:
    assert common_tiles({"a": TILES, "b": TILES}) == TILES
    assert common_tiles({"a": None, "b": None}) is None
    other = TILES.model_copy(update={"front_end": FrontEnd(nfft=128, hop=32, tile=SIDE)})
    longer = TILES.model_copy(update={"chunk_s": 0.02})
    for different, said in ((other, "nfft 64 and 128"), (longer, "0.01 s and 0.02 s"), (None, "only one of them")):
        with pytest.raises(UserError, match=f"'a' and 'c'.*{said}"):
            common_tiles({"a": TILES, "b": TILES, "c": different})
