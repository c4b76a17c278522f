"""Longhaul: a Ray-based multi-GPU scaling platform for vision and radio-frequency models.

The rooms, from the bottom up: ``recipe`` (what a run is), ``data`` / ``models`` / ``signals`` (what it reads and trains),
``workloads`` (the problem), ``resilience`` and ``export`` (what survives it), ``training`` (how it runs), ``tuning`` /
``serving`` / ``insight``, ``cluster``, ``console`` and ``cli``. Imports go down only; import-linter holds that.
"""

__version__ = "0.1.0"
