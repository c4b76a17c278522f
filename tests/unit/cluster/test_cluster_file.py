"""`longhaul cluster validate`: the file in the repository is sound, and each thing that can go wrong in one is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longhaul.cluster.policy import Problem
from longhaul.cluster.validate import validate, validate_file
from longhaul.errors import UserError

FILE = Path(__file__).parents[3] / "cluster.yaml"
TYPES = "available_node_types"


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def errors(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def warnings(problems: list[Problem]) -> dict[str, str]:
    return {problem.path: problem.what for problem in problems if problem.severity == "warning"}


def test_the_file_of_the_repository_is_valid() -> None:
    problems = validate_file(FILE)
    assert errors(problems) == []
    assert all("placeholder" in problem.what for problem in problems)
    assert any("ami-0123456789abcdef0" in problem.what for problem in problems)


def test_the_file_has_what_the_design_asks_for(sound: dict[str, Any]) -> None:
    types = sound[TYPES]
    spot = {name for name, t in types.items() if "InstanceMarketOptions" in t["node_config"]}
    gpus = {name for name, t in types.items() if t["resources"].get("GPU")}
    assert sound["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert spot < gpus, "spot is for GPU workers only"
    assert {"train_on_demand", "serve"} <= gpus - spot
    assert "s3://" in sound["head_start_ray_commands"][-1]


def at(config: dict[str, Any], path: str) -> tuple[Any, Any]:
    """The container and the last key of a path such as `a.b[0].c`."""
    keys = [int(k) if k.isdigit() else k for k in path.replace("[", ".").replace("]", "").split(".")]
    for key in keys[:-1]:
        config = config[key]
    return config, keys[-1]


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        parent, key = at(config, path)
        parent[key] = value

    return change


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        parent, key = at(config, path)
        del parent[key]

    return change


SERVE = f"{TYPES}.serve.node_config"
SPOT = {"MarketType": "spot"}
OPEN = "ray start --address=$RAY_HEAD_IP:6379"
HEAD = f"{TYPES}.head"
EBS = f"{SERVE}.BlockDeviceMappings[0].Ebs"


@pytest.mark.parametrize(
    ("change", "path", "text"),
    [
        # Ray's schema
        (put("max_wokers", 3), "max_wokers", "'max_workers'"),
        (put("max_workers", "3"), "max_workers", "a whole number"),
        (drop("provider"), "provider", "missing"),
        (put(f"{TYPES}.serve.min_worker", 1), f"{TYPES}.serve.min_worker", "'min_workers'"),
        (put(f"{TYPES}.serve.resources", {"GPU": 0.5}), f"{TYPES}.serve.resources.GPU", "a whole number"),
        (drop(f"{TYPES}.serve.node_config"), f"{TYPES}.serve.node_config", "missing"),
        # Ray's validate_config
        (put("head_node_type", "hed"), "the file", "head_node_type"),
        (put(f"{TYPES}.serve.min_workers", 99), "the file", "max_workers"),
        # EC2's RunInstances
        (put(f"{SERVE}.InstanceTyp", "g5.xlarge"), f"{SERVE}.InstanceTyp", "'InstanceType'"),
        (put(f"{SERVE}.InstanceType", "g5.xlrage"), f"{SERVE}.InstanceType", "'g5.xlarge'"),
        (put(f"{SERVE}.ImageId", 7), f"{SERVE}.ImageId", "a text"),
        (put(f"{SERVE}.SubnetIds", "subnet-1"), f"{SERVE}.SubnetIds", "a list"),
        (put(f"{SERVE}.SecurityGroupIds", "sg-1"), f"{SERVE}.SecurityGroupIds", "a list"),
        (put(f"{EBS}.VolumeSize", "500"), f"{EBS}.VolumeSize", "a whole number"),
        (put(f"{EBS}.Iopss", 3), f"{EBS}.Iopss", "'Iops'"),
        (put(f"{EBS}.VolumeType", "gp33"), f"{EBS}.VolumeType", "'gp3'"),
        (put(f"{SERVE}.MinCount", 2), f"{SERVE}.MinCount", "set by Ray"),
        # policy
        (drop(f"{SERVE}.ImageId"), f"{SERVE}.ImageId", "CUDA 11.2"),
        (put(f"{SERVE}.ImageId", "latest_dlami"), f"{SERVE}.ImageId", "CUDA 11.2"),
        (drop(f"{SERVE}.MetadataOptions"), f"{SERVE}.MetadataOptions.HttpTokens", "IMDSv1"),
        (put(f"{SERVE}.MetadataOptions", {"HttpTokens": "optional"}), f"{SERVE}.MetadataOptions.HttpTokens", "IMDSv1"),
        (put(f"{HEAD}.node_config.InstanceMarketOptions", SPOT), f"{HEAD}.node_config.InstanceMarketOptions", "head"),
        (drop("provider.cache_stopped_nodes"), "provider.cache_stopped_nodes", "spot"),
        (put("provider.cache_stopped_nodes", True), "provider.cache_stopped_nodes", "spot"),
        (drop("setup_commands"), "setup_commands", "nightly"),
        (put("setup_commands", []), "setup_commands", "nightly"),
        (drop("head_start_ray_commands"), "head_start_ray_commands", "RAY_AUTH_MODE"),
        (put("worker_start_ray_commands[1]", OPEN), "worker_start_ray_commands[1]", "RAY_AUTH_MODE"),
    ],
)  # fmt: skip
def test_each_mistake_is_found_at_its_path(
    sound: dict[str, Any], change: Callable[[dict[str, Any]], None], path: str, text: str
) -> None:
    config = copy.deepcopy(sound)
    change(config)
    found = errors(validate(config))
    assert path in {problem.path for problem in found}
    line = next(str(problem) for problem in found if problem.path == path)
    assert text in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (drop(f"{SERVE}.SecurityGroupIds"), f"{SERVE}.SecurityGroupIds"),
        (put(f"{HEAD}.resources", {}), f"{HEAD}.resources.CPU"),
        (put(f"{EBS}.VolumeType", "gp2"), f"{EBS}.VolumeType"),
        (
            put("head_start_ray_commands[1]", "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"),
            "head_start_ray_commands[1]",
        ),
    ],
)
def test_what_may_be_meant_is_a_warning(sound: dict[str, Any], change: Callable[[dict[str, Any]], None], path: str) -> None:
    config = copy.deepcopy(sound)
    change(config)
    problems = validate(config)
    assert errors(problems) == []
    assert path in warnings(problems)


def test_all_problems_are_listed_at_once(sound: dict[str, Any]) -> None:
    config = copy.deepcopy(sound)
    for change in (put("max_wokers", 3), put(f"{SERVE}.InstanceTyp", "x"), put(f"{EBS}.Iopss", 3), drop("setup_commands")):
        change(config)
    paths = {problem.path for problem in errors(validate(config))}
    assert {"max_wokers", f"{SERVE}.InstanceTyp", f"{EBS}.Iopss", "setup_commands"} <= paths


def test_wrong_types_everywhere_do_not_stop_the_check(sound: dict[str, Any]) -> None:
    for key in sound:
        for value in (None, 3, "text", [], ["text"], {}, {"x": None}):
            validate({**copy.deepcopy(sound), key: value})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\tx: 1\n"])
def test_what_is_no_cluster_file_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"cluster\.yaml") as refused:
        validate_file(file)
    assert "\n" not in str(refused.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        validate_file(tmp_path / "none.yaml")
