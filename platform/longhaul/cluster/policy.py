"""Settings of a cluster file that Ray and EC2 accept and that end badly: what they lead to, and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

# The account and resource ids that documentation uses, in valid form, with the names around them.
_PLACEHOLDER = re.compile(r"[\w:./-]*123456789012[\w:/.-]*|\b[a-z]+-0123456789abcdef[0-9a-f]\b")


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        path: where in the file, as `available_node_types.head.node_config.ImageId`.
        what: what is wrong there.
        fix: what to do about it.
        severity: an `error` will fail, cost or expose; a `warning` may be meant.
    """

    path: str
    what: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.fix}"


def check_policy(config: dict[str, Any]) -> list[Problem]:
    """The findings for an AWS cluster; parts of the file that have the wrong type are passed over."""
    problems = list(_check_commands(config))
    node_types = _section(config, "available_node_types")
    head = config.get("head_node_type")
    spot: list[str] = []
    for name in node_types:
        path = f"available_node_types.{name}"
        node_config = _section(_section(node_types, name), "node_config")
        problems += _check_node(f"{path}.node_config", node_config)
        if _is_spot(node_config):
            spot.append(name)
    if isinstance(head, str) and head in node_types:
        problems += _check_head(f"available_node_types.{head}", _section(node_types, head))
    if spot and _section(config, "provider").get("cache_stopped_nodes", True) is not False:
        problems.append(
            Problem(
                "provider.cache_stopped_nodes",
                f"Ray stops spot nodes ({', '.join(spot)}) instead of terminating them, and pays for their disks",
                "Set it to false",
            )
        )
    return problems


def placeholders(config: dict[str, Any]) -> list[Problem]:
    """A warning for every example value that still stands in the file, with the first place where it does."""
    places: dict[str, list[str]] = {}
    for path, text in _texts("", config):
        for value in _PLACEHOLDER.findall(text):
            places.setdefault(value, []).append(path)
    return [
        Problem(
            paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""),
            f"{value} is a placeholder",
            "Put your own in before `ray up`",
            "warning",
        )
        for value, paths in places.items()
    ]


def _check_node(path: str, node_config: dict[str, Any]) -> Iterator[Problem]:
    template = "LaunchTemplate" in node_config
    if str(node_config.get("ImageId", "")).lower() in {"", "latest_dlami"} and not template:
        yield Problem(
            f"{path}.ImageId", "missing: Ray's default image has Ubuntu 18.04 and CUDA 11.2, too old for torch", "Give an AMI"
        )
    if _section(node_config, "MetadataOptions").get("HttpTokens") != "required" and not template:
        yield Problem(
            f"{path}.MetadataOptions.HttpTokens",
            "IMDSv1 is allowed: a forged request reads the node's credentials",
            "Set it to required",
        )
    if "SecurityGroupIds" not in node_config and "NetworkInterfaces" not in node_config and not template:
        yield Problem(
            f"{path}.SecurityGroupIds",
            "missing: Ray makes a group that opens SSH to the whole internet",
            "Give your own",
            "warning",
        )
    for position, device in enumerate(node_config.get("BlockDeviceMappings") or []):
        volume = _section(device, "Ebs") if isinstance(device, dict) else {}
        if volume and volume.get("VolumeType") != "gp3":
            yield Problem(
                f"{path}.BlockDeviceMappings[{position}].Ebs.VolumeType",
                "not gp3, which costs less for the same",
                "Set gp3",
                "warning",
            )


def _check_head(path: str, head: dict[str, Any]) -> Iterator[Problem]:
    if _is_spot(_section(head, "node_config")):
        yield Problem(
            f"{path}.node_config.InstanceMarketOptions", "the head is a spot instance: when it goes, every run goes", "Remove it"
        )
    if _section(head, "resources").get("CPU") != 0:
        yield Problem(
            f"{path}.resources.CPU", "not 0: training and serving may land on the head and take it down", "Set it to 0", "warning"
        )


def _check_commands(config: dict[str, Any]) -> Iterator[Problem]:
    if not config.get("setup_commands"):
        yield Problem(
            "setup_commands",
            "missing: Ray's default installs a nightly Ray, another version than here",
            "Install this project by its constraints",
        )
    for key, start in (("head_start_ray_commands", "ray start --head"), ("worker_start_ray_commands", "ray start --address")):
        commands = config.get(key)
        if not isinstance(commands, list) or not any("ray start" in str(command) for command in commands):
            yield Problem(key, "does not start Ray with token authentication", f"Give one with `RAY_AUTH_MODE=token {start}`")
            continue
        for position, command in enumerate(commands):
            if "ray start" in str(command) and "RAY_AUTH_MODE=token" not in str(command):
                yield Problem(
                    f"{key}[{position}]",
                    "RAY_AUTH_MODE is not set: whoever reaches the ports runs code",
                    "Put RAY_AUTH_MODE=token before it",
                )
            if "--dashboard-host=0.0.0.0" in str(command):
                yield Problem(
                    f"{key}[{position}]",
                    "the dashboard listens on every interface",
                    "Leave --dashboard-host out, use `ray dashboard`",
                    "warning",
                )


def _is_spot(node_config: dict[str, Any]) -> bool:
    return _section(node_config, "InstanceMarketOptions").get("MarketType") == "spot"


def _section(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(f"{path}.{key}".lstrip("."), item)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _texts(f"{path}[{position}]", item)
    elif isinstance(value, str):
        yield path, value
