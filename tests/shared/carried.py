"""Modules that Ray carries to its workers by value: they cannot import the tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def carried(path: Path) -> Any:
    """The module in the file `path`, whose functions are pickled by value from now on."""
    import ray.cloudpickle

    spec = importlib.util.spec_from_file_location(f"longhaul_test_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    return module
