"""Checks of a cluster file for `ray up` that need neither AWS nor credentials.

Three looks at the same file: Ray's own schema and `validate_config`; botocore's model of RunInstances for each
`node_config`, which Ray passes on unread; and a short list of settings that both accept and that end badly
(`cluster.policy`).
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from longhaul.cluster.policy import Problem, check_policy, placeholders
from longhaul.errors import UserError

# botocore's report is its public form: one line a finding, with the path inside the parameters.
_UNKNOWN = re.compile(r'Unknown parameter in (?P<path>.*): "(?P<name>.*)", must be one of: (?P<names>.*)')
_TYPE = re.compile(
    r"Invalid type for parameter (?P<path>.*), value: (?P<value>.*), type: .*, valid types: (?P<types>.*)", re.DOTALL
)
_MISSING = re.compile(r'Missing required parameter in (?P<path>.*): "(?P<name>.*)"')
_OTHER = re.compile(r"Invalid (?P<what>\w+) for parameter (?P<path>.*), value: (?P<value>.*), (?P<rule>valid .*)")
_ADDED_BY_RAY = {"MinCount": 1, "MaxCount": 1}
_YAML_TYPES = {"str": "a text", "int": "a whole number", "bool": "true or false", "dict": "a mapping", "list": "a list"}


def validate_file(path: Path) -> list[Problem]:
    """All problems of a cluster file, in the order of the three looks; empty if there are none.

    Raises:
        UserError: there is no such file, or it is not a YAML mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"cluster file {path}: no such file", "Give its path, or run in the clone's top folder") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cluster file {path}: not readable as YAML: {' '.join(str(error).split())}", "Correct it") from None
    if not isinstance(config, dict):
        raise UserError(f"cluster file {path}: not a mapping of fields", "Start from cluster.yaml of the repository")
    return validate(config)


def validate(config: dict[str, Any]) -> list[Problem]:
    """All problems of a cluster description, already read from YAML."""
    problems = list(_check_schema(config))
    node_types = _mapping(config.get("available_node_types"))
    aws = _mapping(config.get("provider")).get("type") == "aws"
    for name, node_type in node_types.items():
        node_config = _mapping(node_type).get("node_config")
        if aws and isinstance(node_config, dict):
            problems += _check_node_config(f"available_node_types.{name}.node_config", node_config)
    if not problems:  # Ray's own check and the policy read fields whose types are right
        problems += _check_by_ray(config)
    if aws:
        problems += check_policy(config)
    return problems + placeholders(config)


def _check_schema(config: dict[str, Any]) -> Iterator[Problem]:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft7Validator(schema)
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(part) for part in e.absolute_path]):
        path = _join(error.absolute_path)
        if error.validator == "additionalProperties":
            known = set(error.schema.get("properties", ()))
            for name in sorted(set(error.instance) - known, key=str):
                yield Problem(f"{path}.{name}".lstrip("."), "unknown to Ray", _nearest(str(name), known))
        elif error.validator == "required":
            name = next(key for key in error.validator_value if key not in error.instance)
            yield Problem(f"{path}.{name}".lstrip("."), "required, and missing", "Add it")
        elif error.validator == "type":
            wanted = error.validator_value
            yield Problem(path, f"{error.instance!r} is not of type {wanted}", f"Give {_article(wanted)}")
        else:
            yield Problem(path or "the file", error.message, "See ray-schema.json of Ray's autoscaler")


def _check_by_ray(config: dict[str, Any]) -> Iterator[Problem]:
    """What Ray checks beyond its schema, on the file with Ray's defaults filled in, as `ray up` does first of all."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except Exception as error:  # noqa: BLE001 - whatever stops `ray up` here is a finding
        yield Problem(
            "the file", f"refused by Ray: {str(error).splitlines()[0] if str(error) else type(error).__name__}", "Correct it"
        )


def _check_node_config(path: str, node_config: dict[str, Any]) -> Iterator[Problem]:
    from botocore.validate import ParamValidator

    shape = _run_instances()
    params = dict(node_config)
    subnets = params.pop("SubnetIds", None)  # Ray's own key: it picks one of them for each launch
    if subnets is not None and not (isinstance(subnets, list) and all(isinstance(each, str) for each in subnets)):
        yield Problem(
            f"{path}.SubnetIds", f"{subnets!r} is not a list of texts", "Give a list, such as [subnet-0123456789abcdef0]"
        )
    for name in sorted(params.keys() & _ADDED_BY_RAY.keys()):
        yield Problem(f"{path}.{name}", "set by Ray for each launch", "Remove it")
    report = ParamValidator().validate({**params, **_ADDED_BY_RAY}, shape)
    if report.has_errors():
        for line in report.generate_report().split("\n"):
            yield _explain(path, line)
    yield from _check_enums(path, params, shape)


@functools.cache
def _run_instances() -> Any:
    """The shape of RunInstances' parameters; EC2's model takes a third of a second to read."""
    import botocore.session

    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _explain(path: str, line: str) -> Problem:
    """One line of botocore's report with the path as it stands in the file."""
    if match := _UNKNOWN.fullmatch(line):
        names = match["names"].split(", ")
        return Problem(_below(path, match["path"], match["name"]), "unknown to EC2", _nearest(match["name"], names))
    if match := _TYPE.fullmatch(line):
        wanted = re.findall(r"<class '(?:\w+\.)*(\w+)'>", match["types"])
        return Problem(
            _below(path, match["path"]), f"{match['value']!r} has the wrong type", f"Give {_YAML_TYPES.get(wanted[0], wanted[0])}"
        )
    if match := _MISSING.fullmatch(line):
        return Problem(_below(path, match["path"], match["name"]), "required by EC2, and missing", "Add it")
    if match := _OTHER.fullmatch(line):
        return Problem(
            _below(path, match["path"]), f"{match['value']!r} has an invalid {match['what']}", f"EC2 says: {match['rule']}"
        )
    return Problem(path, line, "Correct it")


def _check_enums(path: str, value: Any, shape: Any) -> Iterator[Problem]:
    """Values outside the enumerations of botocore's model; its own validator does not look at them."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in value.keys() & shape.members.keys():
            yield from _check_enums(f"{path}.{name}", value[name], shape.members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for position, item in enumerate(value):
            yield from _check_enums(f"{path}[{position}]", item, shape.member)
    elif shape.type_name == "string" and isinstance(value, str) and shape.enum and value not in shape.enum:
        yield Problem(path, f"{value!r} is none of EC2's values", _nearest(value, shape.enum))


def _below(path: str, inside: str, name: str = "") -> str:
    parts = [path, "" if inside == "input" else inside, name]
    return ".".join(part for part in parts if part)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, [str(each) for each in known], n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else "Remove it" if len(known) > 30 else f"Known: {', '.join(sorted(known))}"


def _article(wanted: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number", "number": "a number"}
    return " or ".join(names.get(each, each) for each in ([wanted] if isinstance(wanted, str) else wanted))


def _join(parts: Any) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
