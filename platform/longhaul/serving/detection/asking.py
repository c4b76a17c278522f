"""Asking members about tiles, all at once, until a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from longhaul.engines.inference import Array
from longhaul.serving.detection.answers import ModelStatus, Status
from longhaul.serving.detection.members import Member
from longhaul.serving.queueing.batching import DeadlinePassed


@dataclass(frozen=True)
class Reply:
    """What became of one member's part.

    Attributes:
        member: who was asked, or would have been.
        status: how it went.
        seconds: from being asked to its answer; None unless it answered in time.
        detail: what there is to say of it.
        outputs: of its network; None unless it answered in time.
    """

    member: Member
    status: Status
    seconds: float | None = None
    detail: str | None = None
    outputs: Mapping[str, Array] | None = None

    def as_answer(self) -> ModelStatus:
        """As the client sees it."""
        return ModelStatus(
            model=self.member.name,
            version=self.member.version,
            status=self.status,
            seconds=self.seconds,
            detail=self.detail,
        )


async def ask(members: Sequence[Member], tiles: Tensor, stop: float) -> list[Reply]:
    """Every member's reply by `stop` at the latest; those that have not answered then are late, and cancelled.

    Args:
        members: who is asked.
        tiles: (N, 1, T, T).
        stop: in the running event loop's time.
    """
    if not members:
        return []
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_reply(member, tiles, stop)) for member in members]
    try:
        await asyncio.wait(tasks, timeout=max(0.0, stop - loop.time()))
        return [task.result() if task.done() else Reply(member, Status.LATE) for member, task in zip(members, tasks, strict=True)]
    finally:
        for task in tasks:
            task.cancel()


async def _reply(member: Member, tiles: Tensor, stop: float) -> Reply:
    loop = asyncio.get_running_loop()
    asked = loop.time()
    try:
        outputs = await member.runner.infer(tiles, deadline=stop)
    except DeadlinePassed:
        return Reply(member, Status.LATE)
    except Exception as error:  # noqa: BLE001 - whatever it was, the other members' answer must not fail with it
        return Reply(member, Status.FAILED, detail=story(error))
    return Reply(member, Status.ON_TIME, loop.time() - asked, outputs=outputs)


def story(error: BaseException) -> str:
    """What happened, with its cause."""
    words = str(error) or type(error).__name__
    return f"{words}: {error.__cause__}" if error.__cause__ is not None else words
