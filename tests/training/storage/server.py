"""An S3 server of its own on loopback: moto's, in another process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import s3fs


class Server(NamedTuple):
    """Where it answers, and what a client's environment says of it."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def variables(self) -> dict[str, str]:
        """For s3fs."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> str:
        """A new bucket: its URL."""
        s3fs.S3FileSystem(endpoint_url=self.variables["AWS_ENDPOINT_URL"], key="test", secret="test").mkdir(name)
        return f"s3://{name}"


@contextmanager
def s3_server(port: int) -> Iterator[Server]:
    """Running while it is open."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                    break
                except (URLError, OSError):
                    assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                    time.sleep(0.1)
            yield Server(process, port)
        finally:
            process.kill()
