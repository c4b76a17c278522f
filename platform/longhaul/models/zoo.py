"""Image networks by name."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import timm
import torch
from torch import Tensor, nn

from longhaul.errors import UserError, first_line
from longhaul.recipe.networks import DetectorName, ModelSection

Builder = Callable[[ModelSection, int, int], nn.Module]
"""(section, number of classes, resolution in pixels) -> network from (N, 3, R, R) to logits (N, classes)."""

OWN: Mapping[str, str] = MappingProxyType(
    {
        "simple_cnn": "longhaul.models.small_cnns:simple_cnn",
        "tiny_cnn": "longhaul.models.small_cnns:tiny_cnn",
    }
)
"""Networks of our own, before timm's names: where the `Builder` of each is.

Its module is imported when the network is built: code that builds another network does not depend on it.
"""

DETECTORS = get_args(DetectorName)
"""Detectors, which `models.faster_rcnn` builds."""


def build_image_model(section: ModelSection, classes: int, resolution: int) -> nn.Module:
    """A network from images (N, 3, R, R) to logits (N, classes), its weights from torch's global random state.

    Raises:
        UserError: an unknown name (with the nearest ones), an option that the network does not have, a resolution that it
            cannot work at, weights that cannot be read.
    """
    builder: Builder = pkgutil.resolve_name(OWN[section.name]) if section.name in OWN else _timm_model
    model = builder(section, classes, resolution)
    if section.weights is not None:
        load_fitting(model, Path(section.weights).expanduser())
    _check_resolution(model, section.name, resolution)
    return model


def own_module(name: str) -> str | None:
    """The module that a network of our own is built by, such as `longhaul.models.small_cnns`; None for any other network."""
    return OWN[name].partition(":")[0] if name in OWN else None


def model_names(pattern: str = "") -> list[str]:
    """The names that `model.name` takes, those that contain `pattern`."""
    return sorted({name for name in [*OWN, *DETECTORS, *timm.list_models()] if pattern in name})


def check_name(name: str) -> None:
    """Refuse an unknown name, naming the nearest ones.

    Raises:
        UserError: no network is called so.
    """
    if name in OWN or name in DETECTORS or timm.is_model(name):
        return
    near = difflib.get_close_matches(name, model_names(), n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "See `longhaul recipe models`"
    raise UserError(f"model.name {name!r}: unknown model", hint)


def _timm_model(section: ModelSection, classes: int, resolution: int) -> nn.Module:
    check_name(section.name)
    options: dict[str, Any] = {"drop_rate": section.drop_rate} if section.drop_rate else {}
    if section.drop_path_rate:
        options["drop_path_rate"] = section.drop_path_rate
    fixed_size = bool(timm.get_pretrained_cfg_value(section.name, "fixed_input_size") or False)
    if fixed_size:  # transformers are built for one resolution
        options["img_size"] = resolution
    try:
        return timm.create_model(section.name, pretrained=section.pretrained, num_classes=classes, **options)
    except TypeError as error:
        raise UserError(
            f"model {section.name!r}: does not take one of {sorted(options)} ({error})", "Remove that field"
        ) from None
    except (ArithmeticError, AssertionError, ValueError) as error:
        raise _does_not_fit(section.name, resolution, error) from None
    except (OSError, RuntimeError) as error:
        if not section.pretrained:
            raise
        fix = "Give a local file in model.weights, or set model.pretrained to false"
        raise UserError(f"model {section.name!r}: its published weights cannot be had ({error})", fix) from None


@torch.no_grad()
def _check_resolution(model: nn.Module, name: str, resolution: int) -> None:
    """One forward pass: a network says only then that its patches or poolings do not fit, too late on a cluster."""
    try:
        model.eval()(torch.zeros(1, 3, resolution, resolution))
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise _does_not_fit(name, resolution, error) from None
    model.train()


def _does_not_fit(name: str, resolution: int, error: Exception) -> UserError:
    problem = f"data.resolution {resolution}: model {name!r} cannot work at it ({first_line(error)})"
    return UserError(problem, "Give another resolution, such as a larger one or a multiple of its patch size")


def load_fitting(model: nn.Module, path: Path) -> None:
    """Load what a file of weights has for this network; tensors of another shape (the head) stay as they are.

    Raises:
        UserError: the file is missing, is of another kind, or nothing in it fits.
    """
    state = read_weights(path)
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise UserError(f"model.weights {path}: no tensor in it fits this network", "Give weights of the same network")
    model.load_state_dict(fitting, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pt` file; a `.pt` file is read without running code from it.

    Raises:
        UserError: the file is missing or is none of these.
    """
    if not path.is_file():
        raise UserError(f"model.weights {path}: no such file", "Give a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - the two readers raise a dozen types for a broken file
        # Torch's own text is a page about how to run the file's code.
        plain = path.suffix == ".safetensors" or isinstance(error, OSError)
        reason = first_line(error) if plain else "holds more than tensors, or is no whole .pt file"
        raise UserError(
            f"model.weights {path}: cannot be read ({reason})", "Give a .safetensors or .pt file of tensors by name"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"model.weights {path}: holds no tensors by name", "Give a .safetensors or .pt file with a state_dict")
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
