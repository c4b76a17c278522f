"""What is checked before anything starts: the config, its arguments, the registry, the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import Registry

CONFIG = Path(__file__).parents[2] / "serve_configs" / "local.yaml"


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(str(tmp_path / "models"))


def settings(**given):
    from longhaul.serving import deployment

    values = {"registry": None, "models": [], "host": None, "port": None} | given
    return deployment.override(deployment.read_config(CONFIG), **values)


def args_of(config) -> dict:
    return config.applications[0].args


def test_local_yaml_is_serves_own_schema_on_loopback_with_bounded_queues() -> None:
    from longhaul.serving import deployment

    config = deployment.read_config(CONFIG)
    assert config.http_options.host == "127.0.0.1"
    (server,) = config.applications[0].deployments
    assert server.max_queued_requests > 0
    assert server.backpressure_config.status_code == 429


def test_a_relative_registry_counts_from_where_the_command_was_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGHAUL_REGISTRY", raising=False)
    assert args_of(settings())["registry"] == str(tmp_path / "models")
    assert args_of(settings(registry="other"))["registry"] == str(tmp_path / "other")
    monkeypatch.setenv("LONGHAUL_REGISTRY", "/srv/models")
    assert args_of(settings())["registry"] == "/srv/models"
    assert args_of(settings(registry="other"))["registry"] == str(tmp_path / "other")


def test_what_is_given_takes_the_configs_place_and_the_config_stays() -> None:
    from longhaul.serving import deployment

    config = deployment.read_config(CONFIG)
    changed = deployment.override(config, registry="/srv/m", models=["digits@3"], host="0.0.0.0", port=8123)
    assert (changed.http_options.host, changed.http_options.port) == ("0.0.0.0", 8123)
    assert args_of(changed)["models"] == ["digits@3"]
    assert args_of(config)["registry"] == "models"
    assert config.http_options.port == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("a: [", "no YAML"),
        ("just words", "the whole file"),
        (
            "applications:\n- name: a\n  import_path: x:y\n  deploymnts: []\n",
            "applications.0: unknown field 'deploymnts'. Did you mean deployments",
        ),
        ("applications:\n- name: a\n  import_path: x:y\n", "no application with import_path longhaul.serving.app:build"),
    ],
)
def test_a_config_that_is_not_right_is_named(tmp_path, text, message) -> None:
    from longhaul.serving import deployment

    path = tmp_path / "serve.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        deployment.read_config(path)
    assert "\n" not in str(error.value)
    if text != "applications:\n- name: a\n  import_path: x:y\n":
        assert str(path) in str(error.value)


def test_the_builder_fixes_names_to_versions_and_refuses_what_is_not_there(registry, publish_tiny) -> None:
    from longhaul.serving.app import build

    with pytest.raises(UserError, match="holds no model"):
        build({"registry": registry.uri})
    publish_tiny(registry)
    publish_tiny(registry)
    with pytest.raises(UserError, match="Did you mean tiny"):
        build({"registry": registry.uri, "models": ["tinny"]})
    with pytest.raises(UserError, match=r"args\.registri.*Known: registry, models, engine, threads"):
        build({"registri": "x"})
    bound = build({"registry": registry.uri})._bound_deployment
    assert bound.name == "ModelServer"
    assert bound.init_args == (registry.uri, ["tiny@2"], "auto", 1)


def test_damage_is_found_before_anything_starts(registry, publish_tiny) -> None:
    from longhaul.serving import deployment

    publish_tiny(registry)
    config = settings(registry=registry.uri)
    assert [m.version for m in deployment.check_models(config)] == ["1"]
    file = Path(registry.folder("tiny", "1")) / "model.onnx"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"tiny/1/model\.onnx: its SHA-256 differs"):
        deployment.check_models(config)


def test_an_address_that_is_not_this_machines_is_refused() -> None:
    from longhaul.serving import deployment

    with pytest.raises(UserError, match=r"address 192\.0\.2\.1:8000: .*--host"):
        deployment.check_port("192.0.2.1", 8000)
