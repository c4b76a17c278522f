"""How many replicas a load asks for: alone, in sequences, and as Ray Serve asks."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from longhaul.serving.autoscaling import BUSY, MISSED, SHED, EnsemblePolicy, Load, PolicySettings, desired_replicas
from longhaul.serving.http.settings import ApiSettings

SETTINGS = PolicySettings(requests=4, hysteresis=0.3, missed=0.05, busy=0.5, growth=0.5, settle_s=45)
loads = st.builds(
    Load,
    replicas=st.integers(1, 40),
    requests=st.floats(0, 400),
    busy=st.floats(0, 1),
    missed=st.floats(0, 1),
    shed=st.floats(0, 9),
    since_growth_s=st.sampled_from([0.0, 44.0, 45.0, math.inf]),
)


def desired(load: Load, least: int = 1, most: int = 100) -> int:
    return desired_replicas(load, SETTINGS, least, most)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(2, 8), 2),
        (Load(2, 8.1), 3),
        (Load(2, 40), 10),
        (Load(3, 8), 3),  # two would do, but barely
        (Load(3, 5.6), 2),
        (Load(5, 0), 1),
        (Load(4, 8, busy=0.9, missed=0.06), 5),
        (Load(4, 8, busy=0.9, missed=0.9), 6),
        (Load(4, 8, busy=0.9, shed=1), 5),
        (Load(4, 0, shed=2), 1),  # a shed model comes back with a request, and there is none
        (Load(4, 1, shed=2), 4),
        (Load(4, 0, busy=0.9, missed=0.03), 4),  # not enough to grow, too much to shrink
        (Load(4, 0, busy=0.9, missed=0.02), 1),
        (Load(4, 8, busy=0.2, missed=0.9), 4),  # too slow without any load: no replica helps
        (Load(4, 8, busy=0.9, missed=0.9, since_growth_s=10), 4),
        (Load(4, 40, busy=0.9, missed=0.9, since_growth_s=10), 10),
    ],
)
def test_requests_misses_and_shed_models_ask_for_replicas(load, expected) -> None:
    assert desired(load) == expected


@given(load=loads, more=st.floats(0, 400), field=st.sampled_from(["requests", "missed", "shed"]))
def test_more_load_never_asks_for_fewer(load, more, field) -> None:
    values = {name: getattr(load, name) for name in ("replicas", "requests", "busy", "missed", "shed", "since_growth_s")}
    values[field] = min(1.0, values[field] + more / 400) if field == "missed" else values[field] + more
    assert desired(Load(**values)) >= desired(load)


@given(load=loads, least=st.integers(0, 5), span=st.integers(0, 20))
def test_the_bounds_always_hold(load, least, span) -> None:
    assert least <= desired(load, least, least + span) <= least + span


@given(requests=st.floats(0, 300), start=st.integers(1, 100))
def test_under_a_steady_load_it_comes_to_rest(requests, start) -> None:
    replicas = [start]
    for _ in range(4):
        replicas.append(desired(Load(replicas[-1], requests)))
    assert replicas[2] == replicas[3] == replicas[4]


@pytest.mark.parametrize("seed", range(20))
def test_a_load_that_wavers_by_a_tenth_does_not_make_it_flap(seed) -> None:
    draw = random.Random(seed)
    middle = draw.uniform(5, 200)
    replicas, changes = math.ceil(middle / SETTINGS.requests), []
    for _ in range(500):
        wanted = desired(Load(replicas, middle * draw.uniform(0.9, 1.1), busy=0.9))
        if wanted != replicas:
            changes.append(wanted - replicas)
        replicas = wanted
    assert all(change > 0 for change in changes), changes  # up to the peaks it saw, and never down again


def context(**values):
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    given = {
        "deployment_id": DeploymentID("ModelServer", "longhaul"), "deployment_name": "ModelServer", "app_name": "longhaul",
        "current_num_replicas": 2, "target_num_replicas": 2, "running_replicas": [], "total_num_requests": 0.0,
        "total_queued_requests": 0.0, "aggregated_metrics": {}, "raw_metrics": {}, "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 8, "policy_state": {}, "last_scale_up_time": None, "last_scale_down_time": None,
        "current_time": 1000.0, "config": AutoscalingConfig(min_replicas=1, max_replicas=8, upscale_delay_s=5),
    }  # fmt: skip
    return AutoscalingContext(**(given | values))


def test_ray_serve_asks_it_by_name_and_applies_its_own_delays() -> None:
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingPolicy

    named = AutoscalingPolicy(policy_function="longhaul.serving.autoscaling:EnsemblePolicy", policy_kwargs={"requests": 2})
    policy = _resolve_policy_callable(named)
    assert isinstance(policy, EnsemblePolicy)
    assert policy(context(total_num_requests=9.0))[0] == 5
    busy = {BUSY: {"a": 0.8, "b": 0.8}, MISSED: {"a": 0.5, "b": 0.0}, SHED: {"a": 1.0}}
    assert policy(context(aggregated_metrics=busy))[0] == 3
    assert policy(context(aggregated_metrics=busy, last_scale_up_time=990.0))[0] == 2
    wrapped = _apply_autoscaling_config(policy)
    assert wrapped(context(total_num_requests=9.0))[0] == 2  # five seconds have not passed


@pytest.mark.parametrize("requests", [0.0, 7.0, 500.0])
def test_a_fixed_number_of_replicas_is_a_config_like_any_other(requests) -> None:
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(min_replicas=2, max_replicas=2, upscale_delay_s=0, downscale_delay_s=0)
    policy = _apply_autoscaling_config(EnsemblePolicy(requests=4))
    wanting = {BUSY: {"a": 0.9}, MISSED: {"a": 0.9}, SHED: {"a": 1.0}}
    for reported in ({}, wanting):
        values = {"capacity_adjusted_min_replicas": 2, "capacity_adjusted_max_replicas": 2, "config": config}
        assert policy(context(total_num_requests=requests, aggregated_metrics=reported, **values))[0] == 2


@pytest.mark.parametrize("config", ["local", "aws"])
def test_the_configs_let_requests_in_to_where_the_forecast_decides_with_room_beside_every_stream(config) -> None:
    settings = yaml.safe_load((Path(__file__).parents[3] / "serve_configs" / f"{config}.yaml").read_text())
    for application in settings["applications"]:
        streams = ApiSettings.model_validate(application["args"].get("api", {})).streams.most
        for deployment in application["deployments"]:
            assert deployment["max_ongoing_requests"] - streams >= 48
            assert deployment["max_ongoing_requests"] >= deployment["max_queued_requests"]


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="request_s"):
        EnsemblePolicy(request_s=3)
