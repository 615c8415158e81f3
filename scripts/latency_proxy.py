#!/usr/bin/env python3
"""A TCP proxy on loopback that holds every byte for a fixed time in each direction: it stands in for
the network between a client and its S3 endpoint, and counts connections and HTTP requests, so that one
can tell what a command costs.

It does not limit bandwidth, does not reorder, and does not delay the TCP handshake (a new connection
costs nothing extra). Much above 1 GB/s it is itself the bottleneck: compare with the plain transfer
through it, as scripts/bench does.

usage: latency_proxy.py TARGET_PORT ONE_WAY_MS [--port N] [--exit-with-stdin]
Prints one line, `listening PORT counts PORT`. Whoever connects to the second port gets the counts since
the last such connection as one line of JSON. Ends with SIGTERM, or with its standard input if asked to.
"""

import argparse
import asyncio
import collections
import json
import os
import re
import signal
import sys

IN_FLIGHT_BYTES_MAX = 64 << 20  # a direction: 30 ms at 2 GB/s; beyond it the sender waits
HEAD_BYTES_MAX = 64 << 10
REQUEST_LINE = re.compile(rb"([A-Z]+) \S+ HTTP/1\.[01]\r\n")
BODY_BYTES = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class RequestCounter:
    """Follows the requests of one connection and skips their bodies, so that content cannot be taken for a
    request. A body of unknown length (chunked) is searched for the next request line instead."""

    def __init__(self, counts):
        self.counts = counts
        self.head = b""
        self.body_left = 0

    def feed(self, data):
        self.counts["bytes_up"] += len(data)
        at = min(self.body_left, len(data))
        self.body_left -= at
        while at < len(data):
            self.head += data[at:]
            line = REQUEST_LINE.search(self.head)
            end = self.head.find(b"\r\n\r\n", line.start()) if line else -1
            if end < 0:
                self.head = self.head[line.start() if line else 0 :][-HEAD_BYTES_MAX:]
                return
            self.counts["requests"] += 1
            self.counts[line.group(1).decode()] += 1
            length = BODY_BYTES.search(self.head, line.start(), end)
            rest = len(self.head) - (end + 4)
            self.body_left = int(length.group(1)) if length else 0
            at = len(data) - rest + min(self.body_left, rest)
            self.body_left -= min(self.body_left, rest)
            self.head = b""


class Direction:
    """Bytes on their way from one socket to the other: a queue with one timer for its head."""

    def __init__(self, loop, delay_seconds):
        self.loop = loop
        self.delay_seconds = delay_seconds
        self.queue = collections.deque()
        self.queued_bytes = 0
        self.source = self.sink = None
        self.sink_full = False
        self.timer = None

    def push(self, data):
        """Takes what arrived; None is the end of the stream."""
        self.queue.append((self.loop.time() + self.delay_seconds, data))
        if data:
            self.queued_bytes += len(data)
            if self.queued_bytes > IN_FLIGHT_BYTES_MAX:
                self.source.pause_reading()
        if self.timer is None:
            self.timer = self.loop.call_at(self.queue[0][0], self.deliver)

    def deliver(self):
        self.timer = None
        if self.sink is None:  # still connecting
            self.timer = self.loop.call_later(0.001, self.deliver)
            return
        now = self.loop.time() + 0.0005  # what is due within the timer's grain goes along
        while self.queue and self.queue[0][0] <= now and not self.sink_full:
            _, data = self.queue.popleft()
            if data is None:
                self.sink.close()
                return
            self.queued_bytes -= len(data)
            self.sink.write(data)
        if self.queued_bytes < IN_FLIGHT_BYTES_MAX and not self.source.is_closing():
            self.source.resume_reading()
        if self.queue and not self.sink_full:
            self.timer = self.loop.call_at(self.queue[0][0], self.deliver)


class End(asyncio.Protocol):
    """One socket of a pair: what it receives goes into `outbound`; `inbound` writes to it."""

    def __init__(self, inbound, outbound, on_data):
        self.inbound, self.outbound, self.on_data = inbound, outbound, on_data

    def connection_made(self, transport):
        self.inbound.sink = self.outbound.source = transport
        transport.set_write_buffer_limits(high=1 << 22)

    def data_received(self, data):
        self.on_data(data)
        self.outbound.push(data)

    def connection_lost(self, _error):
        self.outbound.push(None)

    def pause_writing(self):
        self.inbound.sink_full = True

    def resume_writing(self):
        self.inbound.sink_full = False
        self.inbound.deliver()


class Proxy:
    def __init__(self, target_port, delay_seconds):
        self.target_port = target_port
        self.delay_seconds = delay_seconds
        self.counts = collections.Counter()
        self.tasks = set()

    def accept(self):
        """The client's end of a new pair; the server's end is connected while the first bytes wait."""
        loop = asyncio.get_running_loop()
        up, down = Direction(loop, self.delay_seconds), Direction(loop, self.delay_seconds)
        self.counts["connections"] += 1
        client = End(down, up, RequestCounter(self.counts).feed)
        server = End(up, down, self.count_down)
        task = loop.create_task(self.connect(loop, client, server))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return client

    async def connect(self, loop, client, server):
        try:
            await loop.create_connection(lambda: server, "127.0.0.1", self.target_port)
        except OSError:
            client.inbound.sink.abort()

    def count_down(self, data):
        self.counts["bytes_down"] += len(data)

    async def tell_counts(self, _reader, writer):
        writer.write(json.dumps(self.counts).encode() + b"\n")
        self.counts.clear()
        writer.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target_port", type=int)
    parser.add_argument("one_way_ms", type=float)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--exit-with-stdin", action="store_true")
    args = parser.parse_args()

    loop = asyncio.get_running_loop()
    proxy = Proxy(args.target_port, args.one_way_ms / 1000)
    front = await loop.create_server(proxy.accept, "127.0.0.1", args.port, backlog=1024)
    back = await asyncio.start_server(proxy.tell_counts, "127.0.0.1", 0)
    port, counts_port = (s.sockets[0].getsockname()[1] for s in (front, back))
    print(f"listening {port} counts {counts_port}", flush=True)

    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    loop.add_signal_handler(signal.SIGINT, done.set)
    if args.exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(0, 4096) or done.set())
    await done.wait()


if __name__ == "__main__":
    asyncio.run(main())
