"""Asking a server: over HTTP, file by file, or by a stream of chunks. Needs neither Ray nor a model."""

from longhaul.serving.client.client import Longhaul
from longhaul.serving.client.failures import Refused, Unreachable
from longhaul.serving.client.stream import StreamUpdate

__all__ = ["Longhaul", "Refused", "StreamUpdate", "Unreachable"]
