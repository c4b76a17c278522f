"""Nested mappings as dotted paths."""

from __future__ import annotations

from typing import Any


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted paths: `{"training.optimizer.lr": 0.001, "phases.0.name": "small", ...}`."""
    fields: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return fields
