"""One run of the benchmark: its folders, its S3 server and network, and the steps that the rows are made of."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchlib import garage, table, tools
from benchlib.bucket import Bucket
from benchlib.run import Failed, Mount, Proxy, TooSlow, run, settle

LIB = Path(__file__).parent
NETWORKS_MS = (30, 0)  # round trips
SECONDS_MAX = 600
MOUNT_SECONDS_MAX = 120


class Bench:
    """One run, and the repositories its tools made so far."""

    def __init__(self, base, size, paths, facts, results):
        self.base, self.size = base, size
        self.logs, self.facts, self.results = base / "logs", facts, results
        self.paths = dict(paths)
        self.work = Path(tempfile.mkdtemp(prefix="work.", dir=base))
        self.made = {}
        self.homes = 0
        self.peaks = []
        self.server, self.bucket = start_s3(self.work / "s3")
        self.networks = {ms: Proxy(self.bucket.port, ms / 2) for ms in NETWORKS_MS} if self.bucket else {}

    def close(self):
        for network in self.networks.values():
            network.stop()
        if self.server:
            garage.stop(self.server.pid)
        shutil.rmtree(self.work, ignore_errors=True)

    def first_backup(self, tool, what, s3):
        """Makes a new repository and backs up into it; returns the cost of the backup alone."""
        name = f"{tool.name}-{what}-{'s3' if s3 else 'local'}"
        repo = tools.Repo(name, self.new_home(), self.bucket) if s3 else tools.Repo(str(self.work / name), self.new_home())
        for argv in [*tool.configure(repo), *tool.init(repo)]:
            self.run(tool, repo, argv)
        sample = self.back_up(tool, repo, what)
        self.peaks.append(sample.peak_mb)
        self.made[tool.name, what, s3] = repo
        return sample

    def back_up(self, tool, repo, what):
        """Backs up `what`, which the kernel has read just before: it may have let go of it since the step before."""
        warm(self.paths[what])
        return self.run(tool, repo, tool.backup(repo, self.paths[what]))

    def repo(self, tool, what, s3):
        """A repository that holds a backup of `what`: from an earlier row, or made for this one."""
        if (tool.name, what, s3) not in self.made:
            self.first_backup(tool, what, s3)
        return self.made[tool.name, what, s3]

    @contextlib.contextmanager
    def mounted(self, tool, what, ms):
        """The backup of `what`, mounted over the network of this round trip by a tool that never saw it before."""
        repo = self.repo(tool, what, s3=True).at(self.new_home(), self.networks[ms].port)
        for argv in tool.configure(repo):
            self.run(tool, repo, argv)
        folder = f"{repo.home}/mnt"
        drop_caches()
        self.traffic()
        mount = Mount(tool.mount(repo, folder), tool.env(repo), folder, lambda: tool.mounted(folder), self.log(tool), MOUNT_SECONDS_MAX)
        mount.started = replace(mount.started, **self.traffic())
        try:
            yield mount, tool.mounted(folder) + self.paths[what]
            self.peaks.append(mount.peak_mb())
        finally:
            umount = tool.umount(repo, folder)
            mount.stop(umount and (umount, tool.env(repo)))

    def measure(self, mount, *argv, discard=False):
        """Runs a program on the mounted folder; returns its cost, with what it asked of S3, and its output."""
        self.traffic()
        with open(os.devnull, "wb") if discard else open(self.work / "output", "w+b") as out:
            sample = mount.measure(list(argv), dict(os.environ), out)
            sample = replace(sample, **self.traffic())
            if discard:
                return sample, b""
            out.seek(0)
            return sample, out.read()

    def traffic(self):
        """The requests to S3 and the megabytes from there since the last call, as fields of a sample."""
        counts = [network.counts() for network in self.networks.values()]
        return {"requests": sum(c.get("requests", 0) for c in counts), "fetched_mb": sum(c.get("bytes_down", 0) for c in counts) / 1e6}

    def run(self, tool, repo, argv):
        return run(argv, tool.env(repo), self.log(tool), SECONDS_MAX)

    def transfer(self, direction, port):
        argv = [sys.executable, str(LIB / "bucket.py"), direction, f"{self.paths['rand']}/random.bin"]
        env = {**os.environ, **self.bucket.env(), "FLOOR_PORT": str(port), "FLOOR_BUCKET": self.bucket.name}
        warm(self.paths["rand"])
        settle()
        return float(subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout)

    def same(self, *argv):
        """What came back is what went in; nothing wrong counts as fast."""
        if subprocess.run(argv, stdout=subprocess.DEVNULL).returncode != 0:
            raise Failed(f"what came back is not what went in: {' '.join(argv[:6])}")

    def expect(self, what, found, wanted):
        if found != wanted:
            raise Failed(f"{what}: {found}, not {wanted}")

    def new_home(self):
        self.homes += 1
        home = self.work / f"home-{self.homes}"
        home.mkdir()
        return home

    def log(self, tool):
        return self.logs / f"{tool.name}.log"

    def add(self, key, tool, sample):
        say(f"  {tool.name}: {key}: {table.number(sample.value)}")
        self.results.add(key, tool.name, sample)

    @contextlib.contextmanager
    def rows(self, tool, *keys):
        """Work that ends in results for these rows; what goes wrong in it becomes the cell of those that have none."""
        before = {key: self.results.count(key, tool.name) for key in keys}
        try:
            yield
        except (Failed, TooSlow, OSError, subprocess.SubprocessError) as trouble:
            say(f"  {tool.name}: {keys[0]}: {trouble}")
            with open(self.log(tool), "a") as log:
                log.write(f"\n{keys[0]}: {trouble}\n")
            text = f"> {trouble.seconds:g}" if isinstance(trouble, TooSlow) else "failed"
            for key in keys:
                if self.results.count(key, tool.name) == before[key]:
                    self.results.add_trouble(key, tool.name, text)


def start_s3(folder):
    """A server and its bucket: Garage, or the development server, or nothing."""
    if garage.installed():
        return garage.start(folder)
    program = tools.target_dir() / "release/examples/s3-server"
    if not program.exists():
        return None, None
    folder.mkdir()
    bucket = Bucket(garage.free_port(), "bench", "bench-access-key", "bench-secret-key", "us-east-1")
    keys = ["--access-key", bucket.access_key, "--secret-key", bucket.secret_key]
    argv = [str(program), "--dir", str(folder), "--bucket", bucket.name, *keys, "--port", str(bucket.port), "--exit-with-stdin"]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.stdout.readline()
    return server, bucket


def drop_caches():
    """Only what the kernel lets us; a mount's own cache goes with the mount in any case."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass


def warm(path):
    """Has the kernel read everything below a path."""
    subprocess.run(["sh", "-c", 'find "$1" -type f -exec cat {} + >/dev/null', "warm", path], check=True)


def megabytes(path):
    return int(subprocess.run(["du", "-sb", path], check=True, capture_output=True, text=True).stdout.split()[0]) / 1e6


def say(text):
    print(text, file=sys.stderr, flush=True)
