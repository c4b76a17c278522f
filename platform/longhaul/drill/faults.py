"""The faults that a drill knows, and the schedule: which of them strikes at which step, decided by a seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from longhaul.data.order import SampleOrder
from longhaul.errors import UserError

Kind = Literal[
    "kill-worker", "kill-node", "kill-driver", "notice-120", "notice-30", "notice-0", "truncated-shard", "flipped-bit",
    "s3-503", "s3-timeout", "full-disk", "nan-gradient", "poisoned-sample", "hung-rank", "out-of-memory",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANING: dict[Kind, str] = {
    "kill-worker": "SIGKILL of a worker process",
    "kill-node": "SIGKILL of a raylet and all its processes; another node takes its place",
    "kill-driver": "SIGKILL of the driver; it is started again with the same command",
    "notice-120": "a node is drained with 12 s of notice (120 s scaled down), then killed; another takes its place",
    "notice-30": "the same with 3 s (30 s scaled down)",
    "notice-0": "SIGTERM of a raylet without any notice; another takes its place",
    "truncated-shard": "half of a file of the newest checkpoint is cut off on storage, then a worker is killed",
    "flipped-bit": "one bit of a file of the newest checkpoint is turned on storage, then a worker is killed",
    "s3-503": "for 6 s S3 answers every request with 503 Slow Down",
    "s3-timeout": "for 8 s S3 takes connections and says nothing, then drops them",
    "full-disk": "the disk for temporary files of a worker is full until a save has failed on it",
    "nan-gradient": "one gradient is NaN, once",
    "poisoned-sample": "a sample is NaN whenever it is read",
    "hung-rank": "a rank sleeps for ever",
    "out-of-memory": "torch.OutOfMemoryError out of a forward pass, once",
}
IN_WORKER: frozenset[Kind] = frozenset({"full-disk", "nan-gradient", "poisoned-sample", "hung-rank", "out-of-memory"})
"""Those that strike from within a worker; all others come from outside."""
TRACE: dict[Kind, str] = {
    "kill-worker": "lost", "kill-node": "lost", "kill-driver": "resumed",
    "notice-120": "lost", "notice-30": "lost", "notice-0": "lost",
    "truncated-shard": "checkpoint_rejected", "flipped-bit": "checkpoint_rejected", "full-disk": "save_failed",
    "nan-gradient": "rollback", "poisoned-sample": "quarantine", "hung-rank": "lost", "out-of-memory": "micro_batch",
}  # fmt: skip
"""The kind of event that a run writes down about it. An outage of S3 may pass without any."""
NOTICE_S: dict[Kind, int] = {"notice-120": 12, "notice-30": 3}
_ONCE: frozenset[Kind] = frozenset({"poisoned-sample", "out-of-memory"})
_FIRST, _LAST, _APART = 5, 10, 6  # steps before the first fault, after the last one's slot, and the least a slot has


class Fault(BaseModel):
    """One fault of a schedule.

    Attributes:
        number: from 1, in the order in which they strike.
        step: it strikes once this many steps are done and the run has recovered from the one before.
        rank: whom it strikes.
        chance: a number in [0, 1) for what else there is to choose (which file, which bit).
        sample: index of the poisoned sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: Kind
    step: int
    rank: int = 0
    chance: float = 0.0
    sample: int | None = None


def steps_for(faults: int) -> int:
    """How long a run should be for so many faults: room to save and to recover between any two."""
    return _FIRST + 12 * faults + _LAST


def schedule(
    seed: int, count: int, kinds: Sequence[Kind], order: SampleOrder, *, steps: int, batch: int, ranks: int
) -> list[Fault]:
    """`count` faults over a run of `steps`; every kind at least once where there are as many faults as kinds.

    The poisoned sample comes within the first epoch, so that no step has seen it before it is found out and left out: the
    run can then be compared with one that never had it. Out-of-memory comes last: the micro-batch is another from then on,
    and sums of other rounding end the comparison bit by bit.

    Args:
        seed: decides everything.
        count: of faults.
        kinds: to choose from.
        order: of the run's samples.
        steps: the run's length.
        batch: its global batch.
        ranks: its workers.

    Raises:
        UserError: the run is too short for so many.
    """
    random_ = random.Random(f"longhaul drill {seed}")
    room = steps - _FIRST - _LAST
    if room < _APART * count:
        least = _FIRST + _APART * count + _LAST
        raise UserError(f"{count} faults do not fit into {steps} steps", f"Give --set training.steps={least} or more")
    chosen = _choose(random_, count, kinds)
    faults = []
    for place, kind in enumerate(chosen):
        begin, end = _FIRST + room * place // count, _FIRST + room * (place + 1) // count
        step = begin + random_.randrange(max((end - begin) // 2, 1))
        sample = None
        if kind == "poisoned-sample":
            step = min(step, max(order.size // batch - 1, 0))
            sample = int(order.take(step * batch, batch).indices[random_.randrange(batch)])
        rank, chance = random_.randrange(ranks), random_.random()
        faults.append(Fault(number=place + 1, kind=kind, step=step, rank=rank, chance=chance, sample=sample))
    return faults


def _choose(random_: random.Random, count: int, kinds: Sequence[Kind]) -> list[Kind]:
    if count < len(kinds):
        chosen = random_.sample(list(kinds), count)
    else:
        again = [kind for kind in kinds if kind not in _ONCE] or list(kinds)
        chosen = [*kinds, *(random_.choice(again) for _ in range(count - len(kinds)))]
        random_.shuffle(chosen)
    place: dict[Kind, int] = {"poisoned-sample": 0, "out-of-memory": 2}
    return sorted(chosen, key=lambda kind: place.get(kind, 1))
