"""A Garage of one node on loopback, in a folder of its own: the S3 server of the benchmark, and one to try things on.

Needs Garage 2.3 or newer on PATH (`--single-node`). Nothing here is meant to keep data: no replicas, no
fsync of metadata. Garage's own compression is off, since what it gets is sealed.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from benchlib.bucket import Bucket

REGION = "garage"
BUCKET = "kloset"
START_SECONDS_MAX = 30

CONFIG = """\
metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
replication_factor = 1
compression_level = "none"
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{rpc_secret}"

[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{port}"
"""


class NotStarted(Exception):
    """Garage is missing, or did not answer."""


def installed():
    return shutil.which("garage") is not None


def start(folder):
    """Starts a server in `folder`, which is made; returns its process and its bucket, which answers."""
    if not installed():
        raise NotStarted("garage is not on PATH: cargo install garage --locked")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    bucket = Bucket(free_port(), BUCKET, "GK" + secrets.token_hex(12), secrets.token_hex(32), REGION)
    config = folder / "garage.toml"
    config.touch(mode=0o600)
    config.write_text(CONFIG.format(folder=folder, rpc_port=free_port(), rpc_secret=secrets.token_hex(32), port=bucket.port, region=REGION))
    env = {
        **os.environ,
        "GARAGE_DEFAULT_ACCESS_KEY": bucket.access_key,
        "GARAGE_DEFAULT_SECRET_KEY": bucket.secret_key,
        "GARAGE_DEFAULT_BUCKET": bucket.name,
        "RUST_LOG": "garage=warn",
    }
    with open(folder / "garage.log", "wb") as log:
        argv = ["garage", "-c", str(config), "server", "--single-node", "--default-bucket"]
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + START_SECONDS_MAX
    while not bucket.answers():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise NotStarted(f"garage did not start:\n{(folder / 'garage.log').read_text()[-2000:]}")
        time.sleep(0.1)
    return process, bucket


def stop(pid, seconds=10):
    """Ends the server with this process id, gently first."""
    for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5)):
        until = time.monotonic() + patience
        try:
            os.kill(pid, sign)
            while time.monotonic() < until:
                os.kill(pid, 0)
                try:  # a child of ours stays until it is waited for
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass
                time.sleep(0.05)
        except ProcessLookupError:
            return


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
