"""What a drill needs before it starts, and the S3 server that it brings."""

from __future__ import annotations

import importlib.util

import pyarrow.fs as pafs
import pytest

from longhaul.drill.object_store import check_installed, object_store
from longhaul.errors import UserError


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moto" else find(name))
    with pytest.raises(UserError, match=r"pip install 'longhaul\[drill\]'"):
        check_installed()


def test_what_goes_through_the_proxy_is_in_the_bucket_and_an_outage_is_an_error() -> None:
    with object_store() as store:
        through = pafs.S3FileSystem(
            access_key="drill", secret_key="drill", region="us-east-1", scheme="http",
            endpoint_override=store.proxy.address.removeprefix("http://"), connect_timeout=5, request_timeout=5,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2),
        )  # fmt: skip
        with through.open_output_stream("drill/run/file") as stream:
            stream.write(b"bytes" * 100_000)
        assert store.direct.read_bytes("run/file") == b"bytes" * 100_000
        store.proxy.set("refuse")
        with pytest.raises(OSError, match="503"):
            through.open_input_stream("drill/run/file").read()
        assert store.direct.exists("run/file")
        store.proxy.set("pass")
        assert len(through.open_input_stream("drill/run/file").read()) == 500_000
