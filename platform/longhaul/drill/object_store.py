"""An S3 server of the drill's own (moto), in a process of its own, behind a proxy that can be told to misbehave.

Run as `python -m longhaul.drill.object_store` it is that process: it writes its port and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs

from longhaul.drill.proxy import Proxy
from longhaul.errors import UserError
from longhaul.storage import Storage

BUCKET = "drill"


@dataclass(frozen=True)
class ObjectStore:
    """The server, and the two ways to it.

    Attributes:
        proxy: the way of all processes of the run.
        direct: the bucket without the proxy: the drill's own way.
    """

    proxy: Proxy
    direct: Storage

    @property
    def uri(self) -> str:
        """The bucket's address."""
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads a process through the proxy."""
        return {
            "AWS_ENDPOINT_URL": self.proxy.address,
            "AWS_ENDPOINT_URL_S3": self.proxy.address,
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": "drill",
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def check_installed() -> None:
    """Find out early whether there is an S3 server to start.

    Raises:
        UserError: the extra `drill` is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask")):
        raise UserError("longhaul drill: needs an S3 server to disturb (moto)", "Install it: pip install 'longhaul[drill]'")


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket, while the block runs."""
    command = [sys.executable, "-m", "longhaul.drill.object_store"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            filesystem = pafs.S3FileSystem(
                access_key="drill", secret_key="drill", region="us-east-1", scheme="http",
                endpoint_override=f"127.0.0.1:{port}", allow_bucket_creation=True,
            )  # fmt: skip
            filesystem.create_dir(BUCKET)
            proxy = Proxy("127.0.0.1", port)
            try:
                yield ObjectStore(proxy, Storage(filesystem, BUCKET, f"s3://{BUCKET}"))
            finally:
                proxy.close()
        finally:
            server.kill()


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    sys.stdout.write(f"{server.get_host_and_port()[1]}\n")
    sys.stdout.flush()
    while os.read(0, 1):  # until the drill is gone, however it went
        pass
    os._exit(0)


if __name__ == "__main__":
    _serve()
