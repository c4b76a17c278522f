"""Image networks by name: what is built, what is refused, and weights from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from longhaul.errors import UserError
from longhaul.models.zoo import build_image_model, check_name, model_names
from longhaul.recipe.networks import ModelSection


def build(name: str = "test_resnet", classes: int = 10, resolution: int = 32, **fields: object) -> nn.Module:
    return build_image_model(ModelSection.model_validate({"name": name, **fields}), classes, resolution)


def refusal(**options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet-50", "resnet50"), ("ResNet18", "resnet18"), ("convnext_larg", "convnext_large")]
)
def test_an_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name)
    assert caught.value.problem == f"model.name {name!r}: unknown model"
    assert caught.value.fix.startswith("Did you mean ")
    assert near in caught.value.fix


def test_a_name_like_nothing_points_to_the_list() -> None:
    assert refusal(name="zzqqxx") == "model.name 'zzqqxx': unknown model. See `longhaul recipe models`"


def test_names_are_timms_and_can_be_searched() -> None:
    assert "resnet50" in model_names("resnet5")
    assert all("resnet5" in name for name in model_names("resnet5"))
    check_name("resnet50.a1_in1k")


@pytest.mark.parametrize(("name", "resolution"), [("test_resnet", 32), ("test_resnet", 17), ("test_vit", 32), ("test_vit", 48)])
def test_a_network_answers_with_logits_at_the_recipes_resolution(name: str, resolution: int) -> None:
    """timm's `test_vit` was made for 160 pixels; transformers are built for the resolution asked for."""
    model = build(name, 7, resolution)
    assert model.training
    assert model.eval()(torch.zeros(2, 3, resolution, resolution)).shape == (2, 7)


@pytest.mark.parametrize(("name", "resolution"), [("test_vit", 50), ("test_vit", 8), ("convnext_atto", 16)])
def test_a_resolution_that_the_network_cannot_work_at_is_refused_before_training(name: str, resolution: int) -> None:
    message = refusal(name=name, resolution=resolution)
    assert message.startswith(f"data.resolution {resolution}: model {name!r} cannot work at it (")
    assert message.endswith("Give another resolution, such as a larger one or a multiple of its patch size")


def test_initial_weights_follow_the_global_random_state_alone() -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed)
        model = build(drop_rate=0.5)
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_dropout_options_reach_the_network_and_unknown_ones_are_refused() -> None:
    model = build("test_vit", drop_rate=0.25, drop_path_rate=0.2)
    assert model.head_drop.p == 0.25
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert "does not take one of ['drop_path_rate']" in refusal(name="vgg11", drop_path_rate=0.1)


@pytest.mark.parametrize(("name", "parameters"), [("resnet50", 25_557_032), ("convnext_large", 197_767_336)])
def test_parameters_of_the_published_networks(name: str, parameters: int) -> None:
    """As the papers' authors' own weights have them, with 1000 classes; on the meta device nothing is allocated."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


# ---- weights from a file ---------------------------------------------------------------------------------------------


@pytest.fixture
def trained() -> nn.Module:
    """Stands for a trained network: no weight is as a fresh one has it."""
    model = build(classes=10)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape) + 2 if value.is_floating_point() else value + 3)
    return model


def write(model: nn.Module, path: Path) -> Path:
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"plain.pt": state, "nested.pt": {"state_dict": state, "epoch": 3}, "model.pt": {"model": state}}[path.name], path
        )
    return path


@pytest.mark.parametrize("file", ["w.safetensors", "plain.pt", "nested.pt", "model.pt"])
def test_weights_come_from_a_file(trained: nn.Module, tmp_path: Path, file: str) -> None:
    state = build(weights=str(write(trained, tmp_path / file))).state_dict()
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("file", ["w.safetensors", "plain.pt"])
def test_another_head_starts_fresh(trained: nn.Module, tmp_path: Path, file: str) -> None:
    path = write(trained, tmp_path / file)
    torch.manual_seed(0)
    fresh = build(classes=4).state_dict()
    torch.manual_seed(0)
    state = build(classes=4, weights=str(path)).state_dict()
    for name, value in state.items():
        expected = fresh if name.startswith("fc.") else trained.state_dict()
        assert torch.equal(value, expected[name]), name


def test_broken_and_foreign_weights_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    whole = write(trained, tmp_path / "plain.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    cut = write(trained, tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"other": torch.zeros(2)}, tmp_path / "foreign.pt")
    expected = {
        "cut.pt": "cannot be read (holds more than tensors, or is no whole .pt file)",
        "cut.safetensors": "cannot be read (",
        "text.pt": "cannot be read (holds more than tensors, or is no whole .pt file)",
        "empty.pt": "cannot be read (",
        "folder.pt": "no such file",
        "pickled.pt": "cannot be read (holds more than tensors, or is no whole .pt file)",
        "list.pt": "holds no tensors by name",
        "foreign.pt": "no tensor in it fits this network",
        "absent.pt": "no such file",
    }
    for file, problem in expected.items():
        assert refusal(weights=str(tmp_path / file)).startswith(f"model.weights {tmp_path / file}: {problem}")


def test_code_in_a_weights_file_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "sprung"), "w")  # type: ignore[return-value]

    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    assert "cannot be read" in refusal(weights=str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()
