"""The ensemble: one spectrogram, all detectors at once, and an answer at the deadline with what is ready by then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Thread

import torch
from torch import Tensor

from longhaul.errors import UserError
from longhaul.serving.detection.answers import ChunkAnswer, Status
from longhaul.serving.detection.asking import Reply, ask, story
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.combining import Combined, combine
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.members import Member, MemberState, Observer, Runner
from longhaul.serving.detection.places import Places
from longhaul.serving.detection.shedding import SheddingController, SheddingSettings
from longhaul.serving.queueing.batching import DeadlinePassed
from longhaul.serving.queueing.deadline_queue import DeadlineQueue
from longhaul.serving.queueing.learned_time import BatchTimes, LearnedTime
from longhaul.serving.refusals import InvalidParameter, UnknownModel
from longhaul.signals.tile_folder import TileSettings

__all__ = ["Ensemble", "EnsembleSettings", "Member", "MemberState", "Observer", "Runner", "SheddingSettings"]

LEAST_MARGIN_S = 0.002
"""Merging begins this long before the deadline at least."""
MOST_MARGIN = 0.25
"""And at most this share of the deadline."""
_TILES_LATE = "the tiles were not ready in time"
_MERGE_LATE = "it answered in time, but could not be merged in time"
_ANY_RATE_HZ = 1e6
"""The front end is warmed up at this sample rate where no member says what it was trained at."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """One answer in the making; times are the event loop's."""

    begun: float
    deadline_s: float
    stop: float
    wanted: tuple[Member, ...]
    asked: tuple[Member, ...]
    sample_rate_hz: float | None = None

    @property
    def deadline(self) -> float:
        return self.begun + self.deadline_s


class Ensemble:
    """Detectors that share one spectrogram. One event loop uses it.

    The front end is warmed up here: its first chunk may take a second, and from it nobody must learn what a chunk takes.

    Args:
        members: at least one; names differ.
        tiles: how their tiles are made; None where nobody knows, then only tiles are answered.
        settings: deadline, bounds, values, shedding.
        device: where tiles are made and engines read them; `cuda:0` where the engines are on that GPU.

    Attributes:
        tiles: as given.
        settings: as given.
        observers: called after each answer that has seen tiles.

    Raises:
        UserError: no members, or two of one name.
    """

    def __init__(
        self,
        members: Sequence[Member],
        tiles: TileSettings | None,
        settings: EnsembleSettings | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        self.tiles = tiles
        self.settings = settings or EnsembleSettings()
        self.observers: list[Observer] = []
        self._members = {member.name: member for member in members}
        if not members or len(self._members) < len(members):
            raise UserError(f"an ensemble of {[member.name for member in members]}", "Give one member or more, each name once")
        self._device = torch.device(device)
        self._front: DeadlineQueue[Callable[[], Tensor], Tensor] = DeadlineQueue(_call_each, 1, "front-end", _one_torch_thread)
        self._merging = ThreadPoolExecutor(max_workers=1, thread_name_prefix="merge")
        self._merge_time = LearnedTime()
        self._shedding = SheddingController(self.settings.shedding)
        self._in_work = 0
        self._start_front().result()

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is asked, shed ones included."""
        return tuple(self._members.values())

    async def detect(
        self, chunk: SignalChunk, *, deadline_s: float | None = None, models: Collection[str] | None = None
    ) -> ChunkAnswer:
        """What is found in a chunk by the deadline, which counts from this call. Cancelling it cancels what has not begun.

        Args:
            chunk: at least one frame of the front end long.
            deadline_s: other than the settings'.
            models: names, in any order; all members if None.

        Raises:
            UserError: the chunk is too short, or these members answer tiles alone.
            UnknownModel: a name that is no member's.
        """
        begun = asyncio.get_running_loop().time()
        if self.tiles is None:
            raise UserError("nobody knows what these models' tiles are made with", "Send tiles, not signals")
        front_end = self.tiles.front_end
        places = Places.of(chunk, front_end)

        def make() -> Tensor:
            return self._scaled(front_end.to_uint8(chunk.iq.to(self._device)))

        call = self._call(begun, deadline_s, models, chunk.sample_rate_hz)
        frame = ChunkAnswer(
            index=chunk.index,
            start_s=chunk.start_s,
            duration_s=chunk.duration_s,
            degraded=True,
            seconds=0.0,
            models=(),
            detections=(),
        )
        return await self._answer(call, make, places, frame)

    async def detect_tile(
        self, tile: Tensor, *, deadline_s: float | None = None, models: Collection[str] | None = None
    ) -> ChunkAnswer:
        """As `detect`, on one tile (T, T) uint8 without a signal: detections have pixels alone.

        Raises:
            InvalidParameter: the tile has another size than the members'.
            UnknownModel: a name that is no member's.
        """
        begun = asyncio.get_running_loop().time()
        side = tile.shape[0] if self.tiles is None else self.tiles.front_end.tile
        if tile.shape != (side, side):
            height, width = tile.shape
            raise InvalidParameter(f"the tile has {width} x {height} pixels", f"These models look at {side} x {side}")

        def make() -> Tensor:
            return self._scaled(tile.to(self._device))

        call = self._call(begun, deadline_s, models, None)
        frame = ChunkAnswer(degraded=True, seconds=0.0, models=(), detections=())
        return await self._answer(call, make, Places(), frame)

    def replace(self, member: Member, tiles: TileSettings | None = None) -> None:
        """From now on this version answers under its name, or joins; what is in flight ends on the old one.

        Args:
            member: takes the place of the one of its name.
            tiles: how tiles are made from now on, for all members; as before if None. What is in flight ends on the old ones.
        """
        self._members = {**self._members, member.name: member}
        self._shedding.forget(member.name)
        if tiles is not None and tiles != self.tiles:
            self.tiles = tiles
            self._front.times = BatchTimes()  # another front end takes another time
            self._start_front()

    def configure(self, settings: EnsembleSettings) -> None:
        """From now on these settings count; who is shed stays so until it is due to come back."""
        self.settings = settings
        self._shedding.settings = settings.shedding

    def states(self) -> list[MemberState]:
        """How each member does."""
        now = _now()
        return [
            MemberState(
                name=member.name,
                version=member.version,
                shed=member.name in self._shedding.shed,
                misses=self._shedding.misses(member.name, now),
                seconds_per_sample=member.runner.seconds_per_sample,
            )
            for member in self.members
        ]

    def forecast_s(self, models: Collection[str] | None = None) -> float:
        """When a chunk that came now would have the answer of one member at least, in seconds; call it on the event loop.

        The soonest counts, not the slowest. Refusing for the slowest's sake answers more chunks whole, but all in all less: in a
        simulation of three engines, at 1.2, 2 and 4 times the capacity of the slowest, whole answers and half the partial ones
        together were 33, 34 and 34 a second by the slowest (8, 12 and 30 ms a tile), and 30, 34 and 63 by the soonest, who lets
        what is too slow be shed. Where engines are equal it is the same, given some room before the deadline (`Detectors.admit`).

        While nothing is in work it is 0: what was learned may be wrong by now, and would stay so if nobody were let through.

        Args:
            models: names; all members if None. Shed ones do not count.

        Raises:
            UnknownModel: a name that is no member's.
        """
        asked = [member for member in self._wanted(models) if member.name not in self._shedding.shed]
        if not self._in_work:
            return 0.0
        return min(map(self._forecast_s, asked), default=0.0)

    def margin_s(self, deadline_s: float) -> float:
        """How long before the deadline merging begins: what it seldom exceeds, learned, within bounds."""
        return min(max(self._merge_time.bound_s, LEAST_MARGIN_S), MOST_MARGIN * deadline_s)

    def close(self) -> None:
        """End the threads; the members' runners belong to whoever made them."""
        self._front.close()
        self._merging.shutdown(wait=True, cancel_futures=True)

    def _call(
        self, begun: float, deadline_s: float | None, models: Collection[str] | None, sample_rate_hz: float | None
    ) -> _Call:
        wanted = self._wanted(models)
        span = self.settings.deadline_s if deadline_s is None else deadline_s
        shed = self._shedding.shed
        forecasts = {member.name: self._forecast_s(member) for member in wanted if member.name in shed}
        # who is not wanted here would stand no trial
        if forecasts and (back := self._shedding.bring_back(begun, forecasts, self.settings.deadline_s)):
            _log.info("model %s is asked again, on trial", back)
            shed = self._shedding.shed
        asked = tuple(member for member in wanted if member.name not in shed)
        return _Call(begun, span, begun + span - self.margin_s(span), wanted, asked, sample_rate_hz)

    async def _answer(self, call: _Call, make: Callable[[], Tensor], places: Places, frame: ChunkAnswer) -> ChunkAnswer:
        """`_make`, counted while it is in work."""
        self._in_work += 1
        try:
            return await self._make(call, make, places, frame)
        finally:
            self._in_work -= 1

    async def _make(self, call: _Call, make: Callable[[], Tensor], places: Places, frame: ChunkAnswer) -> ChunkAnswer:
        """The road of every answer: tiles, members, merging, each as far as the time allows."""
        tiles: Tensor | None = None
        try:
            async with asyncio.timeout_at(call.stop):
                tiles = await self._front.run(make, deadline=call.stop)
            replies = await ask(call.asked, tiles, call.stop)
        except (TimeoutError, DeadlinePassed):
            replies = [Reply(member, Status.LATE, detail=_TILES_LATE) for member in call.asked]
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a front end that breaks is told like any engine that breaks
            replies = [Reply(member, Status.FAILED, detail=f"front end: {story(error)}") for member in call.asked]
        combined = await self._combine(replies, places, call)
        answer = self._closing(call, combined, frame, noted=tiles is not None)  # else no member has shown what it can
        if tiles is not None and self.observers:
            asyncio.get_running_loop().call_soon(self._tell, tiles, combined, answer)
        return answer

    async def _combine(self, replies: list[Reply], places: Places, call: _Call) -> Combined:
        """Merge by the deadline; what cannot be merged by then is late."""
        if not any(reply.outputs is not None for reply in replies):
            return Combined(tuple(replies))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        work = loop.run_in_executor(self._merging, partial(combine, replies, self.settings, places, each=bool(self.observers)))
        try:
            await asyncio.wait([work], timeout=max(0.0, call.deadline - begun))
            if work.done():
                return work.result()
            late = [
                replace(reply, status=Status.LATE, seconds=None, detail=_MERGE_LATE, outputs=None)
                if reply.status is Status.ON_TIME
                else reply
                for reply in replies
            ]
            return Combined(tuple(late))
        finally:
            work.cancel()
            self._merge_time.add(loop.time() - begun)

    def _closing(self, call: _Call, combined: Combined, frame: ChunkAnswer, *, noted: bool) -> ChunkAnswer:
        """Statuses in the ensemble's order, shed ones included; if `noted`, the controller learns of them."""
        replies = {reply.member.name: reply for reply in combined.replies}
        told = [replies.get(member.name, Reply(member, Status.SHED)) for member in call.wanted]
        told = [
            replace(reply, detail=reply.member.doubt(call.sample_rate_hz)) if reply.status is Status.ON_TIME else reply
            for reply in told
        ]
        now = asyncio.get_running_loop().time()
        if noted and call.deadline_s >= self.settings.deadline_s:  # less than is promised proves nothing by what is missing
            self._note(now, {reply.member.name: reply.status for reply in told})
        return frame.model_copy(
            update={
                "degraded": any(reply.status is not Status.ON_TIME for reply in told),
                "seconds": now - call.begun,
                "models": tuple(reply.as_answer() for reply in told),
                "detections": combined.detections,
            }
        )

    def _note(self, now: float, statuses: dict[str, Status]) -> None:
        costs = {
            member.name: member.runner.seconds_per_sample / self.settings.values.get(member.name, 1.0) for member in self.members
        }
        if gone := self._shedding.observe(now, statuses, costs):
            _log.warning("model %s is left out: too many answers miss their deadline", gone)

    def _tell(self, tiles: Tensor, combined: Combined, answer: ChunkAnswer) -> None:
        for observer in self.observers:
            try:
                observer(tiles, combined.found or {}, answer)
            except Exception:  # noqa: BLE001 - the answer has gone out; who only looks on must not harm the next one
                _log.exception("an observer of the ensemble failed")

    def _forecast_s(self, member: Member) -> float:
        pieces = 1 if self.tiles is None else self.tiles.front_end.pieces
        return self._front.expected_s(1) + member.runner.expected_s(pieces) + self.margin_s(self.settings.deadline_s)

    def _wanted(self, names: Collection[str] | None) -> tuple[Member, ...]:
        """In the ensemble's order, which decides between equal scores."""
        if names is None:
            return self.members
        for name in names:
            if name not in self._members:
                raise UnknownModel.among(name, self._members)
        return tuple(member for member in self.members if member.name in names)

    def _start_front(self) -> Future[None]:
        """Make the tiles of one chunk of silence, for libraries, plans and memory, on the thread that will make the others."""
        tiles = self.tiles
        if tiles is None:
            return self._front.start()
        rate = max((rate for member in self.members for rate in member.sample_rates_hz), default=_ANY_RATE_HZ)
        samples = max(tiles.chunk_samples(rate), tiles.front_end.nfft)

        def warm_up() -> None:
            try:
                self._scaled(tiles.front_end.to_uint8(torch.zeros(samples, dtype=torch.complex64, device=self._device)))
            except Exception:  # noqa: BLE001 - a front end that breaks is told in every answer
                _log.warning("the front end failed on silence", exc_info=True)

        return self._front.start(warm_up)

    def _scaled(self, tiles: Tensor) -> Tensor:
        """uint8 (..., T, T) -> float32 (N, 1, T, T), 0..1, as a PNG gave in training. On a GPU it is done when this returns."""
        scaled = tiles.reshape(-1, 1, *tiles.shape[-2:]).float().div_(255)
        if scaled.is_cuda:
            torch.cuda.current_stream(scaled.device).synchronize()  # engines read it on streams of their own
        return scaled


def _call_each(jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    return [job() for job in jobs]


def _one_torch_thread() -> None:
    """The front end's steps are short: on a busy machine, threads would wait for one another. Other threads keep their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # for this thread, and for those that are yet to come
    other = Thread(target=torch.set_num_threads, args=(before,))  # for those that are yet to come
    other.start()
    other.join()


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # asked from another thread
        return time.monotonic()
