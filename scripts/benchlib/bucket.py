"""A bucket by plain HTTP: just enough of S3 to see that a server answers, and to measure what moving bytes
costs without any backup program: the floor of the benchmark.

usage: bucket.py put|get FILE    (as a program; the bucket comes from the environment, see `from_env`)
`put` stores FILE in parallel parts, `get` fetches as many parts again; each prints the seconds it took.
"""

import concurrent.futures
import datetime
import hashlib
import hmac
import http.client
import os
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 16 << 20
WORKERS = 8
FLOOR_PREFIX = "floor/"


@dataclass(frozen=True)
class Bucket:
    port: int
    name: str
    access_key: str
    secret_key: str
    region: str

    def env(self):
        """What every S3 client reads from the environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def request(self, connection, method, key, body=None, query=""):
        """Sends one signed request and returns status and body; the body is not part of the signature."""
        path = f"/{self.name}/{key}".rstrip("/")
        target = f"{path}?{query}" if query else path
        connection.request(method, target, body=body, headers=self.sign(method, path, query))
        answer = connection.getresponse()
        return answer.status, answer.read()

    def list(self, prefix):
        """Key and bytes of each object whose key begins so."""
        found, after = [], ""
        while True:
            query = {"list-type": "2", "prefix": prefix, "start-after": after}
            text = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote)
            status, answer = self.request(self.connect(), "GET", "", query=text)
            assert status == 200, f"LIST: status {status}"
            objects = xml.etree.ElementTree.fromstring(answer).findall("{*}Contents")
            if not objects:
                return found
            found += [(at.findtext("{*}Key"), int(at.findtext("{*}Size"))) for at in objects]
            after = found[-1][0]

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60, blocksize=1 << 20)

    def sign(self, method, path, query=""):
        """AWS signature version 4, the payload unsigned."""
        now = datetime.datetime.now(datetime.timezone.utc)
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        names = ";".join(headers)
        lines = [method, path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names, "UNSIGNED-PAYLOAD"]
        scope = [now.strftime("%Y%m%d"), self.region, "s3", "aws4_request"]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        to_sign = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], "/".join(scope), digest])
        key = ("AWS4" + self.secret_key).encode()
        for part in [*scope, to_sign]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"{self.access_key}/{'/'.join(scope)}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
        return headers

    def answers(self):
        """Whether the server is up and lets us in."""
        try:
            return self.request(self.connect(), "HEAD", "")[0] == 200
        except OSError:
            return False


def from_env():
    e = os.environ
    return Bucket(int(e["FLOOR_PORT"]), e["FLOOR_BUCKET"], e["AWS_ACCESS_KEY_ID"], e["AWS_SECRET_ACCESS_KEY"], e["AWS_REGION"])


def move(bucket, count, one):
    """Calls one(connection, number) for each number, in parallel over kept connections; returns the seconds."""
    local = threading.local()

    def work(number):
        if not hasattr(local, "connection"):
            local.connection = bucket.connect()
        one(local.connection, number)

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(count)))
    return time.monotonic() - start


def put(bucket, path):
    def one(connection, number):
        with open(path, "rb") as f:
            f.seek(number * PART_BYTES)
            status, _ = bucket.request(connection, "PUT", f"{FLOOR_PREFIX}{number:04}", f.read(PART_BYTES))
        assert status == 200, f"PUT: status {status}"

    return move(bucket, parts(path), one)


def get(bucket, path):
    def one(connection, number):
        status, body = bucket.request(connection, "GET", f"{FLOOR_PREFIX}{number:04}")
        assert status == 200 and len(body) > 0, f"GET: status {status}"

    return move(bucket, parts(path), one)


def parts(path):
    return -(-Path(path).stat().st_size // PART_BYTES)


if __name__ == "__main__":
    print({"put": put, "get": get}[sys.argv[1]](from_env(), sys.argv[2]))
