"""What is checked before anything starts: the config, its arguments, the registry, the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.serve.config import AutoscalingConfig

from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import Registry
from longhaul.serving.http.tokens import Scope, TokenFile, new_token

CONFIG = Path(__file__).parents[2] / "serve_configs" / "local.yaml"
AWS = CONFIG.with_name("aws.yaml")


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(str(tmp_path / "models"))


def settings(**given):
    from longhaul.serving import deployment

    values = {"registry": None, "models": [], "host": None, "port": None, "tokens": None} | given
    return deployment.override(deployment.read_config(CONFIG), **values)


def args_of(config) -> dict:
    return config.applications[0].args


@pytest.fixture
def tokens(tmp_path) -> Path:
    """A token file with one token."""
    file = tmp_path / "tokens.json"
    TokenFile().with_entry(new_token("test", [Scope.PREDICT])[1]).write(file)
    return file


def test_both_configs_are_serves_own_schema_with_bounded_queues_and_a_policy_that_can_be_imported() -> None:
    from ray.serve._private.autoscaling_state import _resolve_policy_callable

    from longhaul.serving import deployment
    from longhaul.serving.autoscaling import EnsemblePolicy

    for file in (CONFIG, AWS):
        config = deployment.read_config(file)
        for application in config.applications:
            assert application.import_path == deployment.IMPORT_PATH
            (server,) = application.deployments
            assert server.max_queued_requests > 0
            assert server.backpressure_config.status_code == 429
            assert server.max_surge_percent == 100
            assert server.autoscaling_config["max_replicas"] > server.autoscaling_config["min_replicas"] == 1
            policy = AutoscalingConfig.model_validate(server.autoscaling_config).policy
            assert isinstance(_resolve_policy_callable(policy), EnsemblePolicy)
    assert deployment.read_config(CONFIG).http_options.host == "127.0.0.1"
    (ensemble, light) = deployment.read_config(AWS).applications
    assert ensemble.deployments[0].ray_actor_options.num_gpus == 1
    assert 0 < light.deployments[0].ray_actor_options.num_gpus < 1


def test_an_address_that_others_reach_needs_a_token_file(tokens, tmp_path) -> None:
    with pytest.raises(UserError, match=r"address 0\.0\.0\.0: .*no token file.*longhaul token new"):
        settings(host="0.0.0.0")
    with pytest.raises(UserError, match=r"none\.json"):
        settings(host="0.0.0.0", tokens=tmp_path / "none.json")
    assert args_of(settings(host="0.0.0.0", tokens=tokens))["api"]["tokens"] == str(tokens)
    assert "open_loopback" not in args_of(settings())["api"]  # the builder asks Serve itself where it listens


def test_several_applications_each_get_the_registry_and_no_model_by_the_command_line(tokens, tmp_path) -> None:
    from longhaul.serving import deployment

    config = deployment.read_config(AWS)
    values = {"registry": str(tmp_path), "host": None, "port": None, "tokens": tokens}
    changed = deployment.override(config, models=[], **values)
    assert [application.args["registry"] for application in changed.applications] == [str(tmp_path)] * 2
    with pytest.raises(UserError, match=r"several applications \(ensemble, light\)"):
        deployment.override(config, models=["digits"], **values)


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
    changed = deployment.override(config, registry="/srv/m", models=["digits@3"], host="::1", port=8123)
    assert (changed.http_options.host, changed.http_options.port) == ("::1", 8123)
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


def test_the_builder_fixes_names_to_versions_and_refuses_what_is_not_there(registry, publish_tiny, tokens) -> None:
    from longhaul.serving.app import build

    args = {"registry": registry.uri, "api": {"tokens": str(tokens)}}
    with pytest.raises(UserError, match="holds no model"):
        build(args)
    publish_tiny(registry)
    publish_tiny(registry)
    with pytest.raises(UserError, match="Did you mean tiny"):
        build(args | {"models": ["tinny"]})
    with pytest.raises(UserError, match=r"args\.registri.*Known: .*registry, models"):
        build({"registri": "x"})
    with pytest.raises(UserError, match=r"args\.api\.limits\.sampels"):
        build({"api": {"limits": {"sampels": 3}}})
    bound = build(args)._bound_deployment
    assert bound.name == "ModelServer"
    arguments, models = bound.init_args
    assert (arguments["registry"], models) == (registry.uri, ["tiny@2"])


@pytest.mark.parametrize(("host", "opened"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", None), (None, None)])
def test_the_builder_answers_without_tokens_on_loopback_alone(registry, publish_tiny, monkeypatch, host, opened) -> None:
    from longhaul.serving import app

    publish_tiny(registry)
    monkeypatch.setattr(app, "listening_host", lambda: host)
    if opened is None:
        with pytest.raises(UserError, match="no token file"):
            app.build({"registry": registry.uri})
    else:
        arguments, _ = app.build({"registry": registry.uri})._bound_deployment.init_args
        assert arguments["api"]["open_loopback"] is True


def test_what_changes_live_is_checked_too(tmp_path) -> None:
    from longhaul.serving import deployment

    path = tmp_path / "serve.yaml"
    path.write_text(CONFIG.read_text().replace("deadline_s: 0.4", "deadline_s: -1"))
    with pytest.raises(UserError, match=r"user_config\.ensemble\.deadline_s"):
        deployment.read_config(path)


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
