"""From a run's checkpoint to a registered version, through the command line too; a failure registers nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner, Result

from longhaul import workloads
from longhaul.cli import models
from longhaul.cli.export import export
from longhaul.errors import IntegrityError, UserError
from longhaul.export import pipeline
from longhaul.export.registry import Registry
from longhaul.export.tensorrt_plan import PlanError
from longhaul.recipe import Recipe
from longhaul.resilience.run_directory import RunDirectory


def test_the_registered_model_is_the_checkpoints(
    registry: Registry, run: RunDirectory, recipe: Recipe, trained: nn.Module, tmp_path: Path
) -> None:
    manifest = registry.resolve("digits-tiny")
    assert registry.verify(manifest) == []
    assert (manifest.run, manifest.checkpoint, manifest.step) == (run.uri, "step-000000020-abcd1234", 20)
    assert manifest.recipe_sha256 == recipe.sha256
    assert manifest.signature == workloads.build(recipe).signature()
    assert manifest.max_batch == 5
    assert manifest.parity.passed
    assert manifest.metrics["top1"] == manifest.parity.onnx_metric
    session = onnxruntime.InferenceSession(registry.fetch(manifest, tmp_path / "fetched")["model.onnx"])
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained(images)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"image": images.numpy()})[0]), expected, atol=1e-4, rtol=1e-4)
    assert "exported" in run.events()["kind"].to_pylist()


def test_to_s3_and_back(bucket: str, run: RunDirectory, tmp_path: Path) -> None:
    registry = Registry(f"{bucket}/models")
    manifest = pipeline.export_run(run, registry, with_plan=False)
    assert registry.names() == ["digits-tiny"]
    assert set(registry.fetch(manifest, tmp_path)) == {"model.onnx"}
    assert registry.promote("digits-tiny", "1").plans == ()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_weights_changed_between_export_and_comparison(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    export_onnx = pipeline.export_onnx

    def export_then_change(model: nn.Module, *args: object, **options: object) -> list[Path]:
        files = export_onnx(model, *args, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1.02
        return files

    monkeypatch.setattr(pipeline, "export_onnx", export_then_change)
    registry = Registry(str(tmp_path / "models"))
    result = longhaul("export", run.uri, "--registry", registry.uri, "--no-plan")
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.output
    assert not registry.resolve("digits-tiny", "1").parity.passed
    with pytest.raises(UserError, match="does not agree"):
        registry.promote("digits-tiny", "1")
    assert not list(scratch.iterdir())


def broken(*_: object, **__: object) -> None:
    raise PlanError("no")


@pytest.mark.parametrize("step", ["export_onnx", "compare", "build_plan"])
def test_a_step_that_fails_registers_nothing(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path, step: str
) -> None:
    monkeypatch.setattr(pipeline, step, broken)
    registry = Registry(str(tmp_path / "models"))
    with pytest.raises(PlanError):
        pipeline.export_run(run, registry)
    assert registry.names() == []
    assert not (tmp_path / "models").exists()
    assert not list(scratch.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "removed"])
def test_a_damaged_checkpoint_registers_nothing(run: RunDirectory, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    copy = RunDirectory.open(str(shutil.copytree(run.uri, tmp_path / "run")))
    (weights,) = Path(copy.uri).rglob("model.safetensors")
    damage(weights)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        pipeline.export_run(copy, Registry(str(tmp_path / "models")))
    assert not (tmp_path / "models").exists()


def test_starting_weights_are_not_fetched_for_an_export(run: RunDirectory, recipe: Recipe, tmp_path: Path) -> None:
    model = recipe.model.model_copy(update={"weights": str(tmp_path / "long-gone.pt")})
    other = RunDirectory.create(str(tmp_path), "other", recipe.model_copy(update={"model": model}))
    shutil.copytree(Path(run.uri, "checkpoints"), Path(other.uri, "checkpoints"))
    assert pipeline.export_run(other, Registry(str(tmp_path / "models")), with_plan=False).parity.passed


def longhaul(*arguments: str) -> Result:
    """Run the two verbs as `longhaul` has them."""
    app = typer.Typer()
    app.command("export")(export)
    app.add_typer(models.app, name="models")
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_export_by_name_and_the_next_step(run: RunDirectory, tmp_path: Path) -> None:
    root = str(tmp_path / "kept")
    result = longhaul(
        "export", run.name, "--storage", str(Path(run.uri).parent), "--registry", root, "--no-plan", "--which", "latest"
    )
    assert result.exit_code == 0, result.output
    for word in (
        "digits-tiny@1",
        f"{root}/digits-tiny/1",
        "passed",
        "MB",
        "longhaul models promote digits-tiny 1",
        "longhaul serve",
    ):
        assert word in result.output


def test_export_of_an_unknown_run(tmp_path: Path) -> None:
    result = longhaul("export", "nobody", "--storage", str(tmp_path), "--registry", str(tmp_path / "models"))
    assert isinstance(result.exception, UserError)
    assert "run 'nobody': not found below" in str(result.exception)
    assert not (tmp_path / "models").exists()


def test_models_verbs(registry: Registry) -> None:
    at = ("--registry", registry.uri)
    assert longhaul("models", "promote", "digits-tiny", "1", *at).exit_code == 0
    listed = longhaul("models", "ls", *at).output
    for word in ("digits-tiny", "prod", "passed", "top1"):
        assert word in listed
    shown = longhaul("models", "show", "digits-tiny@prod", *at).output
    assert '"max_abs_difference"' in shown
    assert longhaul("models", "verify", *at).exit_code == 0
    assert "sound" in longhaul("models", "verify", "digits-tiny", *at).output


def test_models_verify_names_each_bad_file(registry: Registry) -> None:
    registry.publish(
        registry.resolve("digits-tiny").model_copy(update={"plans": ()}),
        [Path(registry.folder("digits-tiny", "1"), "model.onnx")],
    )
    truncate(Path(registry.folder("digits-tiny", "1"), "model.onnx"))
    truncate(Path(registry.folder("digits-tiny", "2"), "manifest.json"))
    result = longhaul("models", "verify", "--registry", registry.uri)
    assert isinstance(result.exception, IntegrityError)
    assert result.exception.exit_code == 2
    assert "digits-tiny/1/model.onnx: has" in str(result.exception)
    assert "digits-tiny/2/manifest.json: " in str(result.exception)
    listed = longhaul("models", "ls", "--registry", registry.uri)
    assert listed.exit_code == 0
    assert "damaged" in listed.output


@pytest.mark.parametrize(
    "verb", [["export"], ["models"], ["models", "ls"], ["models", "show"], ["models", "verify"], ["models", "promote"]]
)
def test_help_teaches(verb: list[str]) -> None:
    result = longhaul(*verb, "--help")
    assert result.exit_code == 0
    assert verb == ["models"] or "longhaul " + " ".join(verb) in result.output
