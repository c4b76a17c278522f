"""How many replicas there should be: from the requests in the house, missed deadlines, and models that were shed.

Ray Serve's own policy counts requests alone, and a replica that sheds a model to stay in time looks well to it. In a Serve
config: `policy: {policy_function: longhaul.serving.autoscaling:EnsemblePolicy, policy_kwargs: {...PolicySettings}}`. Serve adds
the delays and the bounds (`ray.serve.autoscaling_policy._apply_autoscaling_config`). Its controller imports this file, so
Longhaul must be installed on the head node, and not only come with an application's runtime_env.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

BUSY, MISSED, SHED = "busy", "missed", "shed"
"""What a replica reports (`ModelServer.record_autoscaling_stats`): shares of 0..1, and a number of models."""


class PolicySettings(BaseModel):
    """When to grow and when to shrink.

    Attributes:
        requests: in work or waiting, for each replica; more than that on average, and replicas are added.
        hysteresis: a replica goes only if the rest would then be this share below `requests`.
        missed: share of answers that may miss their deadline; more, and replicas are added. Below half of it they may go.
        busy: misses count only while engines are busy for at least this share of the time: a model that is too slow when it is
            alone becomes no faster by another replica.
        growth: at the most this share of the replicas is added at once for misses.
        settle_s: after replicas were added, misses add no more for so long, since what is averaged holds the time before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: float = Field(4.0, gt=0)
    hysteresis: float = Field(0.3, ge=0, lt=1)
    missed: float = Field(0.05, gt=0, lt=1)
    busy: float = Field(0.5, ge=0, le=1)
    growth: float = Field(0.5, gt=0)
    settle_s: float = Field(45.0, ge=0)


@dataclass(frozen=True)
class Load:
    """What is known of a deployment at one moment.

    Attributes:
        replicas: that run.
        requests: in work or waiting, in all replicas together. Behind HAProxy, Serve counts those alone that a replica has let
            in (up to its `max_ongoing_requests`), not those that wait before it.
        busy: share of the time in which engines ran, mean over replicas.
        missed: share of answers that missed their deadline, mean over replicas.
        shed: models that are left out, in all replicas together; without requests they do not count.
        since_growth_s: since replicas were added; infinite if they never were.
    """

    replicas: int
    requests: float
    busy: float = 0.0
    missed: float = 0.0
    shed: float = 0.0
    since_growth_s: float = math.inf


def desired_replicas(load: Load, settings: PolicySettings, least: int, most: int) -> int:
    """How many there should be; it never falls when the load rises.

    Args:
        load: now.
        settings: when to grow and when to shrink.
        least: the lower bound.
        most: the upper bound.
    """
    enough = math.ceil(load.requests / settings.requests)
    safely_enough = math.ceil(load.requests / (settings.requests * (1 - settings.hysteresis)))
    by_requests = max(enough, min(load.replicas, safely_enough))
    return max(least, min(most, max(by_requests, _by_misses(load, settings))))


def _by_misses(load: Load, settings: PolicySettings) -> int:
    """At least so many for the deadlines' sake; 0 if there is nothing to say."""
    missing = load.shed > 0 and load.requests > 0  # a request brings models back: without any, nobody misses what is left out
    short = load.missed > settings.missed or missing
    if not short:
        return load.replicas if load.missed > settings.missed / 2 else 0
    if load.busy < settings.busy or load.since_growth_s < settings.settle_s:
        return load.replicas
    wanted = load.replicas * max(load.missed, load.shed / max(load.replicas, 1))
    return load.replicas + max(1, math.floor(min(wanted, load.replicas * settings.growth)))


class EnsemblePolicy:
    """`desired_replicas` as Ray Serve calls it.

    Args:
        settings: the fields of `PolicySettings`, from the config's `policy_kwargs`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = PolicySettings.model_validate(settings)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state of its own."""
        return (
            desired_replicas(load_of(ctx), self.settings, ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas),
            {},
        )


def load_of(ctx: AutoscalingContext) -> Load:
    """What Serve knows, as far as it counts here."""
    reported: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
    grown = ctx.last_scale_up_time
    since = math.inf if grown is None or ctx.current_time is None else ctx.current_time - grown
    return Load(
        replicas=ctx.current_num_replicas,
        requests=ctx.total_num_requests,
        busy=_mean(reported.get(BUSY, {})),
        missed=_mean(reported.get(MISSED, {})),
        shed=sum(reported.get(SHED, {}).values()),
        since_growth_s=since,
    )


def _mean(by_replica: Mapping[Any, float]) -> float:
    return sum(by_replica.values()) / len(by_replica) if by_replica else 0.0
