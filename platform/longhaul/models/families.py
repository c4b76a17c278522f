"""The networks of the resolution grid by family, and the family of any network."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import timm

from longhaul.models.zoo import DETECTORS, OWN

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vgg": ("vgg11", "vgg13", "vgg16", "vgg19"),
        "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        "mobilenet_v2": ("mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100"),
        "mobilenet_v3": ("mobilenetv3_small_100", "mobilenetv3_large_100"),
        "cnn": ("tiny_cnn", "simple_cnn"),
    }
)
"""Families and their networks, the smallest first; in this order they stand in tables and pictures."""

OTHER = "other"
"""The family of a name that no network has."""

# timm defines these in modules that are named for other networks.
_GENERATIONS = {f"mobilenetv{generation}": f"mobilenet_v{generation}" for generation in (1, 2, 3, 4)}


def family_of(model_name: str) -> str:
    """A network's family: one of `FAMILIES`, else timm's module that defines it, such as `convnext` or `vision_transformer`.

    A tag of pretrained weights (`resnet50.a1_in1k`) does not matter. Of a name that is unknown it is `OTHER`.
    """
    architecture = model_name.partition(".")[0]
    for family, names in FAMILIES.items():
        if architecture in names:
            return family
    for generation, family in _GENERATIONS.items():
        if generation in architecture:
            return family
    if architecture in OWN:
        return "cnn"
    if architecture in DETECTORS:
        return "faster_rcnn"
    if timm.is_model(architecture):
        return timm.model_entrypoint(architecture).__module__.rpartition(".")[2]
    return OTHER
