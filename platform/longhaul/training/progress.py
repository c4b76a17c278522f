"""Where a run stands: the small part of its state, saved as JSON in every checkpoint."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from longhaul.training.patience import Patience


class Progress(BaseModel):
    """What the loop needs to go on besides tensors.

    Attributes:
        fingerprint: of the data whose order the cursor counts in.
        cursor: global position behind the last step (`data.order`).
        step: optimizer steps done.
        segment: how many times the workers have been started; trackers' steps only go forward within one.
        excluded: samples to step over.
        rate_factor: what the plateau schedule has taken off the learning rate.
        plateau, early: bookkeeping of the plateau schedule and of early stopping.
        stopped_early: training has ended before its length.
        tracker_runs: ids at the experiment trackers, by tracker.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str = ""
    cursor: int = 0
    step: int = 0
    segment: int = 0
    excluded: list[int] = []
    rate_factor: float = 1.0
    plateau: Patience | None = None
    early: Patience | None = None
    stopped_early: bool = False
    tracker_runs: dict[str, str] = {}
