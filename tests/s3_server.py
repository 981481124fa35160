"""A server of buckets on this machine, for tests that are run with ``make test-s3``."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from equipoise.datasets.remote.addresses import connect

#: The key of the server's buckets, which nothing may write down.
SECRET = "planted-key-of-the-buckets"


@contextmanager
def s3_server() -> Iterator[str]:
    """A server in memory, with the bucket ``here``; its address and keys are in the environment for the block."""
    from s3fs import S3FileSystem

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            for _ in range(600):
                assert process.poll() is None
                try:
                    urllib.request.urlopen(url, timeout=5)
                    break
                except OSError:
                    time.sleep(0.1)
            S3FileSystem.clear_instance_cache()  # of an earlier server
            fs, _ = connect("s3://here")
            fs.mkdir("here")
            yield url
        finally:
            process.terminate()
            process.wait(20)
