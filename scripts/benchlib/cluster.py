"""A Garage of three nodes on loopback, every object on all three: one may be killed and nothing is lost or waits for it."""

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from benchlib.bucket import Bucket
from benchlib.garage import BUCKET, REGION, START_SECONDS_MAX, NotStarted, free_port, installed

NODES = 3
CONFIG = """\
metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
replication_factor = {nodes}
compression_level = "none"
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{rpc_secret}"

[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{port}"
"""


class Node:
    """One server: its folder, its ports, and its process while it runs."""

    def __init__(self, folder, rpc_secret):
        self.folder, self.port, self.rpc_port, self.process = folder, free_port(), free_port(), None
        folder.mkdir(parents=True, mode=0o700)
        self.config = folder / "garage.toml"
        self.config.touch(mode=0o600)
        self.config.write_text(
            CONFIG.format(folder=folder, nodes=NODES, rpc_port=self.rpc_port, rpc_secret=rpc_secret, region=REGION, port=self.port)
        )

    def start(self):
        with open(self.folder / "garage.log", "ab") as log:
            argv = ["garage", "-c", str(self.config), "server"]
            env = {**os.environ, "RUST_LOG": "garage=warn"}
            self.process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def kill(self):
        """As a power cut does."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def ask(self, *words):
        done = subprocess.run(["garage", "-c", str(self.config), *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise NotStarted(f"garage {' '.join(words[:2])}: {done.stderr or done.stdout}")
        return done.stdout.strip()


class Cluster:
    """Three nodes that know each other, and a bucket that each of them serves."""

    def __init__(self, folder):
        if not installed():
            raise NotStarted("garage is not on PATH: cargo install garage --locked")
        rpc_secret = secrets.token_hex(32)
        self.access_key, self.secret_key = "GK" + secrets.token_hex(12), secrets.token_hex(32)
        self.nodes = [Node(Path(folder).resolve() / f"node-{number}", rpc_secret) for number in range(NODES)]
        try:
            for node in self.nodes:
                node.start()
            self.join()
            self.make_bucket()
        except BaseException:
            self.stop()
            raise

    def join(self):
        names = [until_it_answers(lambda node=node: node.ask("node", "id", "-q")) for node in self.nodes]
        first = self.nodes[0]
        until_it_answers(lambda: first.ask("status"))
        for name in names[1:]:
            until_it_answers(lambda name=name: first.ask("node", "connect", name))
        for name in names:
            until_it_answers(lambda name=name: first.ask("layout", "assign", "-z", "here", "-c", "10G", name.partition("@")[0]))
        first.ask("layout", "apply", "--version", "1")

    def make_bucket(self):
        first = self.nodes[0]
        until_it_answers(lambda: first.ask("key", "import", "--yes", self.access_key, self.secret_key))
        first.ask("bucket", "create", BUCKET)
        first.ask("bucket", "allow", "--read", "--write", BUCKET, "--key", self.access_key)
        for number in range(NODES):
            until_it_answers(lambda number=number: self.bucket(number).answers() or None)

    def bucket(self, number):
        """The bucket as the node of this number serves it."""
        return Bucket(self.nodes[number].port, BUCKET, self.access_key, self.secret_key, REGION)

    def stop(self):
        for node in self.nodes:
            if node.process:
                node.process.send_signal(signal.SIGTERM)
        for node in self.nodes:
            if node.process:
                try:
                    node.process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    node.process.kill()
                    node.process.wait()


def until_it_answers(ask):
    """What a node says once it is ready to; raises what it said last if that never comes."""
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            answer = ask()
            if answer is not None:
                return answer
        except NotStarted:
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            raise NotStarted("a node does not answer")
        time.sleep(0.2)
