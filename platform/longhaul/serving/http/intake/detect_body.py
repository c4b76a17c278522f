"""What `/v1/detect` takes, as OpenAPI tells it."""

from __future__ import annotations

from typing import Any

from longhaul.serving.http.intake.references import Reference

BARE = "application/octet-stream"
ARCHIVES = ("application/x-sigmf", "application/x-tar")
META_FIELD, DATA_FIELD = "meta", "data"

_OCTETS = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": [META_FIELD, DATA_FIELD],
    "properties": {
        META_FIELD: {**_OCTETS, "description": "The .sigmf-meta file."},
        DATA_FIELD: {**_OCTETS, "description": "The .sigmf-data file."},
    },
}
_EXAMPLES = {
    "archive": {"summary": "In a bucket", "value": {"uri": "s3://captures/2026/roof.sigmf-meta"}},
    "stretch": {
        "summary": "A fifth of a second of a file of the server's",
        "value": {"uri": "/data/captures/roof.sigmf", "start_s": 12.5, "duration_s": 0.2},
    },
}

DOCUMENTATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Bare samples (with `datatype` and `sample_rate`), a SigMF archive (plain tar), a SigMF pair as a form "
        f"with the fields `{META_FIELD}` and `{DATA_FIELD}`, one tile as a PNG in grey, or a reference to a recording that the "
        "server can read: best for what is large.",
        "content": {
            BARE: {"schema": _OCTETS},
            **{kind: {"schema": _OCTETS} for kind in ARCHIVES},
            "multipart/form-data": {"schema": _FORM},
            "image/png": {"schema": _OCTETS},
            "application/json": {"schema": Reference.model_json_schema(), "examples": _EXAMPLES},
        },
    }
}
