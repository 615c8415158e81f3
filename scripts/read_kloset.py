#!/usr/bin/env python3
"""Reads a kloset in a folder: a second implementation of docs/format.md, written from that text alone.

It shares no code with the program and exists to show that the text suffices, and to notice when the program
and the text part ways. It is slow, holds a snapshot's list of entries in memory, and only reads. Whatever the
text tells a reader to refuse it refuses: a message on standard error, exit code 1.

usage: read_kloset.py (--passphrase-file F | --key-file F) FOLDER list
       read_kloset.py (--passphrase-file F | --key-file F) FOLDER dump SNAPSHOT_ID_PREFIX PATH
       read_kloset.py (--passphrase-file F | --key-file F) FOLDER json
       read_kloset.py (--passphrase-file F | --key-file F) FOLDER verify EXPECTED_JSON
       read_kloset.py selftest FORMAT_MD

list      names every snapshot, and under each every path; \\xNN stands for a byte that cannot be shown
dump      writes one file's content to standard output, zeros for its holes
json      prints all there is to know of all snapshots; the content of files as a hash of their data
verify    compares that with a file made before; also checks every pack, index run (joined ones too), list of moved chunks and pending list
selftest  computes the test vectors of the text again, and reads its examples

One line feed (or CR LF) at the end of a passphrase file is not part of the passphrase. Needs
scripts/requirements.txt.
"""

import argparse
import base64
import bisect
import collections
import datetime
import functools
import hashlib
import hmac
import json
import os
import pathlib
import re
import struct
import sys
import types
import unicodedata

import argon2.low_level
import msgpack
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl import bindings as sodium
from nacl.exceptions import CryptoError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
HEADER_MAX, PACK_MAX, FOOTER_MAX, RUN_MAX, PENDING_MAX = 64 * KIB, 64 * MIB, 16 * MIB, 64 * MIB, 64 * MIB
MOVED_MAX, MOVED_HEAD_MAX, MOVED_PACKS_MAX, JOINED_RUNS_MAX = 96 * MIB, 64 * KIB, 1024, 1024
MANIFEST_MAX, CHUNK_MAX, RAW_FRAME_MAX, PAGE_MAX = 16 * MIB, 16 * MIB, 17 * MIB, 8 * MIB
SEALED_FRAME_MIN, SEALED_FRAME_MAX = 41, 34 * MIB
HOLES_MAX, XATTRS_MAX, BRANCHES_MAX, ERRORS_MAX = 16_384, MIB, 4, 10_000
DATA, TREES = 0, 1  # kinds of packs
FULL_BYTES, WRITE_ONLY_BYTES = 24 + 32 + 16, 24 + 104 + 16
FILE, DIRECTORY, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, FIFO, SOCKET = range(7)
TYPES = ["file", "directory", "symlink", "char-device", "block-device", "fifo", "socket"]
MANIFEST = """id time end host user program paths tags description excludes parent root summary index incomplete errors
    errors_total""".split()
SUMMARY = ["files", "directories", "others", "bytes", "files_new", "files_changed", "files_unmodified", "chunks_new",
           "bytes_new", "bytes_stored"]
MAX_DIFFERENCES = 10


class Damaged(Exception):
    """Something that the format tells a reader to refuse."""


def need(condition, message):
    if not condition:
        raise Damaged(message)


# ---- values: maps, numbers, texts ----------------------------------------------------------------------------


class Fields(dict):
    """A map of JSON or MessagePack that remembers which keys occurred more than once."""

    twice = frozenset()

    @classmethod
    def of(cls, pairs):
        fields = cls(pairs)
        need(all(isinstance(key, str) for key in fields), "a key that is not text")
        if len(fields) != len(pairs):
            fields.twice = {key for key, n in collections.Counter(key for key, _ in pairs).items() if n > 1}
        return fields

    def __missing__(self, key):
        raise Damaged(f"{key} is missing")


def fields_of(value, keys, version=None):
    """The value if it is a map in which none of these keys occurs twice, after a look at its version."""
    need(isinstance(value, Fields), "not a map")
    if version:
        need(version not in value.twice, f"{version} occurs twice")
        need(number(value[version]) == 1, f"version {value[version]} is not known")
    need(not value.twice.intersection(keys), f"a key occurs twice: {value.twice}")
    return value


def from_json(content):
    def constant(name):
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=Fields.of, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {error}") from None


def from_msgpack(content):
    try:
        return msgpack.unpackb(content, object_pairs_hook=Fields.of)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not MessagePack: {error}") from None


def number(value, low=0, high=U64):
    need(type(value) is int and low <= value <= high, f"{value!r} is not a number from {low} to {high}")
    return value


def octets(value, low, high):
    need(type(value) is bytes and low <= len(value) <= high, f"not {low} to {high} bytes")
    return value


def text(value, controls=True, high=None):
    need(type(value) is str, "not a text")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise Damaged("a text that is not Unicode") from None
    need(high is None or length <= high, f"a text of {length} bytes")
    need(controls or not any(unicodedata.category(c) == "Cc" for c in value), "control characters in a text")
    return value


def list_of(value, parse, length=None):
    need(type(value) is list and length in (None, len(value)), "not a list, or not of the right length")
    return [parse(item) for item in value]


def from_hex(value, length):
    need(type(value) is str and re.fullmatch("[0-9a-f]{%d}" % (2 * length), value), f"not {length} bytes in hex")
    return bytes.fromhex(value)


def created(value):
    need(re.fullmatch("[ -~]{0,40}", text(value)), "created is not a time")
    return value


def byte_text(value):
    if isinstance(value, dict):
        try:
            return base64.b64decode(text(fields_of(value, ["b64"])["b64"]).encode(), validate=True)
        except ValueError:
            raise Damaged("not base64") from None
    return text(value).encode()


def to_byte_text(value):
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


# ---- cryptography and compression ----------------------------------------------------------------------------


def derive_key(context, key):
    return blake3(key, derive_key_context=context).digest()


def keyed_hash(key, content):
    return blake3(content, key=key).digest()


def bound_text(what, fields):
    return (f"kloset-mount v1 {what}\n" + "".join(f"{name}={value}\n" for name, value in fields)).encode()


def additional_data(kind, kloset_id, name):
    return b"kloset-mount v1 " + kind.encode() + b"\0" + kloset_id + name


def unseal(key, sealed, additional):
    need(len(sealed) >= 40, "too short for a seal")
    try:
        return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed[24:], additional, sealed[:24], key)
    except CryptoError:
        raise Damaged("the seal does not open") from None


def unpack(packed, limit):
    need(packed, "an empty packed content")
    codec, payload = packed[0], packed[1:]
    need(codec in (0, 1), f"codec {codec} is not known")
    if codec == 0:
        need(len(payload) <= limit, f"longer than {limit} bytes")
        return payload
    try:
        need(payload[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
        frame = zstandard.get_frame_parameters(payload)
        need(frame.content_size != zstandard.CONTENTSIZE_UNKNOWN, "a zstd frame without content size")
        need(frame.content_size <= limit, f"longer than {limit} bytes")
        need(frame.dict_id == 0, "a zstd frame with a dictionary")
        if frame.content_size:
            content = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        else:  # the call above would not look behind the frame's header
            decoder = zstandard.ZstdDecompressor().decompressobj()
            content = decoder.decompress(payload)
            need(decoder.eof and not decoder.unused_data, "something behind the zstd frame")
        need(len(content) == frame.content_size, "a zstd frame of another length than it says")
        return content
    except zstandard.ZstdError as error:
        raise Damaged(f"zstd: {error}") from None


def x25519(scalar, point):
    try:
        return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        raise Damaged("a session whose shared secret is zero") from None


def x25519_public(scalar):
    return X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes_raw()


def extract(suite, salt, label, ikm):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(suite, prk, label, info):  # 32 bytes, one block of HKDF
    return hmac.digest(prk, b"\x00\x20HPKE-v1" + suite + label + info + b"\x01", "sha256")


def sealing_key_of(dh, enc, public, psk, kloset_id):
    kem, hpke = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\xff\xff"
    need(dh != bytes(32), "a session whose shared secret is zero")
    shared = expand(kem, extract(kem, b"", b"eae_prk", dh), b"shared_secret", enc + public)
    psk_id_hash = extract(hpke, b"", b"psk_id_hash", b"kloset-mount v1")
    info_hash = extract(hpke, b"", b"info_hash", b"kloset-mount v1 session" + kloset_id)
    secret = extract(hpke, shared, b"secret", psk)
    exporter_secret = expand(hpke, secret, b"exp", b"\x01" + psk_id_hash + info_hash)
    return expand(hpke, exporter_secret, b"sec", b"kloset-mount v1 sealing key")


class Keys:
    """The keys of a full slot; with master=None what a write-only slot has."""

    def __init__(self, master, chunk_id=None, index=None, seed=None, public=None):
        self.private = self.moved = None
        if master is not None:
            chunk_id, index = (derive_key(f"kloset-mount v1 {k} key", master) for k in ("chunk id", "index"))
            seed = derive_key("kloset-mount v1 chunker seed", master)[:8]
            self.private = derive_key("kloset-mount v1 x25519 private key", master)
            public = x25519_public(self.private)
            self.moved = derive_key("kloset-mount v1 moved chunks key", self.private)
        self.chunk_id, self.index, self.public = chunk_id, index, public
        self.seed = int.from_bytes(seed, "little")
        self.tree_id = derive_key("kloset-mount v1 tree id key", chunk_id)
        self.header_mac = derive_key("kloset-mount v1 header mac key", index)
        self.psk = derive_key("kloset-mount v1 session psk", index)


def passphrase_key(passphrase, salt, memory_kib, passes, lanes):
    try:
        password = unicodedata.normalize("NFC", passphrase.decode("utf-8")).encode()
    except UnicodeDecodeError:
        raise Damaged("the passphrase is not valid UTF-8") from None
    return argon2.low_level.hash_secret_raw(
        password, salt, passes, memory_kib, lanes, hash_len=32, type=argon2.low_level.Type.ID, version=0x13)


def key_file_key(content):
    text = content.decode("utf-8", "replace")
    printed = paper_key(text)
    return derive_key("kloset-mount v1 key file", printed or from_hex(text.strip(), 32))


def paper_key(text):
    """The key that is printed in a text, or nothing."""
    found = {}
    for line in text.splitlines():
        begins = re.match(r"[^0-9A-Za-z]*[Kk]([1-4])(?![0-9A-Za-z])(.*)", line)
        if begins:
            found.setdefault(int(begins[1]), begins[2])
    if not found:
        return None
    key = b""
    for number in range(1, 5):
        need(number in found, f"line K{number} of the paper key is missing")
        digits = "".join(c for c in found[number].lower() if c.isalnum())
        line = from_hex(digits.translate(str.maketrans("oli", "011")), 10)
        check = derive_key("kloset-mount v1 paper key line", bytes([number]) + line[:8])[:2]
        need(check == line[8:], f"line K{number} of the paper key is not as it was printed")
        key += line[:8]
    return key


# ---- stores --------------------------------------------------------------------------------------------------


class Folder:
    def __init__(self, path):
        self.root = pathlib.Path(path)

    def names(self, prefix):
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def size(self, name):
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None

    def get(self, name, limit, offset=0, length=None):
        size = self.size(name)
        need(size <= limit, f"{name}: longer than {limit} bytes")
        length = size - offset if length is None else length
        need(0 <= offset and 0 <= length <= size - offset, f"{name}: too short")
        with open(self.root / name, "rb") as file:
            file.seek(offset)
            content = file.read(length)
        need(len(content) == length, f"{name}: too short")
        return content


class Memory(Folder):
    """What the self-test reads from."""

    def __init__(self, objects):
        self.objects = objects

    def names(self, prefix):
        return sorted(name for name in self.objects if name.startswith(prefix + "/"))

    def size(self, name):
        need(name in self.objects, f"{name}: no such object")
        return len(self.objects[name])

    def get(self, name, limit, offset=0, length=None):
        need(self.size(name) <= limit, f"{name}: longer than {limit} bytes")
        end = self.size(name) if length is None else offset + length
        need(0 <= offset <= end <= self.size(name), f"{name}: too short")
        return self.objects[name][offset:end]


def pack_name(session, pack):
    return f"packs/{session.hex()}/{pack:08x}"


def is_time(value):
    try:
        datetime.datetime.strptime(value[:15], "%Y%m%dT%H%M%S")
    except ValueError:
        return False
    return value >= "1970" and value[13:15] < "60"  # strptime takes leap seconds


# ---- parts of a kloset, each from its raw content -------------------------------------------------------------


def parse_header(content):
    header = from_json(content)
    need(isinstance(header, Fields) and header.get("format") == "kloset-mount" and "format" not in header.twice,
         "not a kloset")
    fields_of(header, ["id", "created", "chunker", "compression", "mac"], version="version")
    chunker = fields_of(header["chunker"], ["min_bytes", "avg_bytes", "max_bytes"])
    sizes = [number(chunker[f"{which}_bytes"]) for which in ("min", "avg", "max")]
    need(all(size % 2 == 0 for size in sizes) and 1024 <= sizes[0] <= sizes[1] < sizes[2]
         and sizes[1] <= 4 * MIB and sizes[2] <= 16 * MIB, "chunk sizes out of bounds")
    level = number(fields_of(header["compression"], ["zstd_level"])["zstd_level"], 1, 19)
    from_hex(header["id"], 32)
    fields = [("version", 1), ("id", header["id"]), ("created", created(header["created"]))]
    fields += [(f"chunker.{which}_bytes", size) for which, size in zip(("min", "avg", "max"), sizes)]
    return types.SimpleNamespace(id=bytes.fromhex(header["id"]), mac=from_hex(header["mac"], 32),
                                 bound=bound_text("header", fields + [("compression.zstd_level", level)]))


def parse_slot(content, kloset_id, slot_id):
    bound_names = ["kloset", "id", "kind", "label", "created"]
    slot = fields_of(from_json(content), [*bound_names, "kdf", "sealed"], version="version")
    need(from_hex(slot["kloset"], 32) == kloset_id, "a slot of another kloset")
    need(from_hex(slot["id"], 16) == slot_id, "a slot under another name")
    need(slot["kind"] in ("full", "write-only"), "the kind of slot is not known")
    text(slot["label"], controls=False, high=200)
    created(slot["created"])
    kdf = fields_of(slot["kdf"], ["name", "memory_kib", "passes", "lanes", "salt"])
    need(kdf["name"] in ("key-file", "argon2id"), "the key derivation is not known")
    cost = None
    if kdf["name"] == "argon2id":
        lanes = number(kdf["lanes"], 1, 64)
        memory_kib, passes = number(kdf["memory_kib"], 8 * lanes, 4 * GIB // KIB), number(kdf["passes"], 1, 64)
        cost = from_hex(kdf["salt"], 16), memory_kib, passes, lanes
    sealed = from_hex(slot["sealed"], FULL_BYTES if slot["kind"] == "full" else WRITE_ONLY_BYTES)
    bound = bound_text("key slot", [(name, slot[name]) for name in bound_names])
    return types.SimpleNamespace(kind=slot["kind"], cost=cost, sealed=sealed, bound=bound)


def open_slot(slot, wrapping_key):
    plain = unseal(wrapping_key, slot.sealed, slot.bound)
    return Keys(plain) if slot.kind == "full" else Keys(None, plain[:32], plain[32:64], plain[64:72], plain[72:])


def parse_footer(raw, end_of_frames):
    """The pack's kind and its frames: (offset, sealed length, [(chunk id, length)])."""
    footer = fields_of(from_msgpack(raw), ["k", "f"], version="v")

    def chunk(value):
        ident, length = list_of(value, lambda item: item, 2)
        return octets(ident, 32, 32), number(length, 1, CHUNK_MAX)

    def frame(value):
        fields_of(value, ["o", "l", "c"])
        chunks = list_of(value["c"], chunk)
        need(sum(length for _, length in chunks) <= RAW_FRAME_MAX, "a frame that is too long")
        return number(value["o"], 0, U32), number(value["l"], SEALED_FRAME_MIN, SEALED_FRAME_MAX), chunks

    kind, frames, end = number(footer["k"], DATA, TREES), list_of(footer["f"], frame), 8
    for offset, length, _ in frames:
        need(offset == end, "frames with gaps")
        end += length
    need(end == end_of_frames, "frames that do not end at the footer")
    return kind, frames


def parse_run(raw):
    """The run's packs, (session, number, kind, length), and an iterator over its entries."""
    need(len(raw) >= 4, "too short for an index run")
    version = struct.unpack_from("<I", raw)[0]
    need(version == 1, f"version {version} is not known")
    need(len(raw) >= 12, "too short for an index run")
    packs_len, entries_len = struct.unpack_from("<II", raw, 4)
    need(len(raw) == 12 + 48 * packs_len + 56 * entries_len, "an index run of another length than it says")
    packs = list(struct.iter_unpack("<32sIIQ", raw[12 : 12 + 48 * packs_len]))
    for _, _, kind, length in packs:
        need(kind in (DATA, TREES) and length <= PACK_MAX, "an index run's pack out of bounds")
    previous = (b"",)
    for entry in struct.iter_unpack("<32s6I", raw[12 + 48 * packs_len :]):
        _, pack, _, offset, length, chunk_offset, chunk_length = entry
        need(previous <= entry, "an index run that is not sorted")
        need(pack < len(packs), "an index run's entry without pack")
        need(offset >= 8 and SEALED_FRAME_MIN <= length <= SEALED_FRAME_MAX and offset + length <= packs[pack][3]
             and 1 <= chunk_length <= CHUNK_MAX and chunk_offset + chunk_length <= RAW_FRAME_MAX,
             "an index run's entry out of bounds")
        previous = entry
    return packs, struct.iter_unpack("<32s6I", raw[12 + 48 * packs_len :])


def parse_pending(raw):
    fields = fields_of(from_json(raw), ["created", "packs"], version="version")
    text(fields["created"], controls=False)

    def pack(value):
        session, pack_number = list_of(value, lambda item: item, 2)
        return from_hex(session, 32), number(pack_number, 0, U32)

    packs = list_of(fields["packs"], pack)
    need(packs == sorted(packs), "a pending list that is not sorted")
    return packs


def parse_manifest(raw, snapshot_id):
    """The manifest as it is stored, and its root as a tree reference."""
    manifest = fields_of(from_json(raw), MANIFEST, version="version")
    need(from_hex(manifest["id"], 16) == snapshot_id, "a snapshot under another name")
    text(manifest["time"], controls=False), text(manifest["end"], controls=False)
    for name in ("host", "user", "program"):
        text(manifest[name])
    text(manifest.get("description", "")), list_of(manifest.get("tags", []), text)
    need(all(path.startswith(b"/") for path in list_of(manifest["paths"], byte_text)), "a path that is not absolute")
    list_of(manifest.get("excludes", []), byte_text)
    need(manifest.get("parent") is None or from_hex(manifest["parent"], 16), "the parent")
    summary = fields_of(manifest["summary"], SUMMARY)
    for name in SUMMARY:
        number(summary[name])
    list_of(manifest.get("index", []), lambda run: from_hex(run, 16))
    need(type(manifest["incomplete"]) is bool, "incomplete is not true or false")
    for error in list_of(manifest.get("errors", []), lambda value: fields_of(value, ["path", "message"])):
        byte_text(error["path"]), text(error["message"])
    need(len(manifest.get("errors", [])) <= ERRORS_MAX, "too many errors")
    number(manifest.get("errors_total", 0))
    root = fields_of(manifest["root"], ["id", "bytes", "session", "pack", "frame", "chunk_offset"])
    packs = [(from_hex(root["session"], 32), number(root["pack"], 0, U32))]
    ref = tree_ref([from_hex(root["id"], 32), root["bytes"], 0, root["frame"], root["chunk_offset"]], packs)
    return manifest, ref


TreeRef = collections.namedtuple("TreeRef", "id length session pack frame chunk_offset")
ChunkRef = collections.namedtuple("ChunkRef", "id length session pack frame_offset frame_length chunk_offset")


def at(table, place):
    need(number(place, 0, U32) < len(table), "a place that is not in its table")
    return table[place]


def tree_ref(value, packs):
    ident, length, pack, frame, chunk_offset = list_of(value, lambda item: item, 5)
    octets(ident, 32, 32), number(length, 1, PAGE_MAX), number(frame, 0, U32), number(chunk_offset, 0, U32)
    need(length + chunk_offset <= RAW_FRAME_MAX, "a tree reference out of bounds")
    return TreeRef(ident, length, *at(packs, pack), frame, chunk_offset)


def chunk_ref(value, packs):
    ident, length, pack, offset, frame_length, chunk_offset = list_of(value, lambda item: item, 6)
    octets(ident, 32, 32), number(length, 1, CHUNK_MAX), number(offset, 8, U32), number(chunk_offset, 0, U32)
    number(frame_length, SEALED_FRAME_MIN, SEALED_FRAME_MAX)
    need(length + chunk_offset <= RAW_FRAME_MAX, "a chunk reference out of bounds")
    need(offset + frame_length <= PACK_MAX, "a chunk reference out of bounds")
    return ChunkRef(ident, length, *at(packs, pack), offset, frame_length, chunk_offset)


def parse_packs(value):
    def pack(item):
        session, pack_number = list_of(item, lambda part: part, 2)
        return octets(session, 32, 32), number(pack_number, 0, U32)

    return list_of(value, pack)


def parse_content_page(raw):
    page = fields_of(from_msgpack(raw), ["p", "c"], version="v")
    packs = parse_packs(page["p"])
    return list_of(page["c"], lambda value: chunk_ref(value, packs))


def parse_page(raw):
    """A leaf, (nodes, None), or a branch, (None, [(first name, number of nodes, tree reference)])."""
    page = fields_of(from_msgpack(raw), ["p", "w", "n", "b"], version="v")
    packs = parse_packs(page.get("p", []))

    def owner(value):
        uid, gid, user, group = list_of(value, lambda item: item, 4)
        return number(uid, 0, U32), number(gid, 0, U32), text(user, high=255), text(group, high=255)

    def entry(value):
        first, nodes_len, ref = list_of(value, lambda item: item, 3)
        return name_of(first), number(nodes_len, 1), tree_ref(ref, packs)

    owners = list_of(page.get("w", []), owner)
    need(("n" in page) != ("b" in page), "a page must be a leaf or a branch")
    if "n" in page:
        nodes = list_of(page["n"], lambda value: parse_node(value, packs, owners))
        ascending([node.name for node in nodes])
        return nodes, None
    entries = list_of(page["b"], entry)
    need(entries, "an empty branch")
    ascending([first for first, _, _ in entries])
    return None, entries


def ascending(names):
    need(all(a < b for a, b in zip(names, names[1:])), "names that are not in order")


def name_of(value):
    octets(value, 1, 255)
    need(value not in (b".", b"..") and b"/" not in value and b"\0" not in value, f"the name {value!r}")
    return value


def parse_time(value):
    seconds, nanoseconds = list_of(value, lambda item: item, 2)
    return [number(seconds, -(1 << 63), (1 << 63) - 1), number(nanoseconds, 0, 999_999_999)]


def parse_xattr(value):
    name, content = list_of(value, lambda item: item, 2)
    return octets(name, 1, 255), octets(content, 0, XATTRS_MAX)


def parse_node(value, packs, owners):
    """A node with `entry`, what is told about it, and what its type needs."""
    fields_of(value, "n t m w mt ct i s c cp h r l d x".split())
    kind = number(value["t"], FILE, SOCKET)
    node = types.SimpleNamespace(name=name_of(value["n"]), kind=kind)
    uid, gid, user, group = at(owners, value["w"])
    device, inode, links = list_of(value["i"], number, 3)
    xattrs = list_of(value.get("x", []), parse_xattr)
    ascending([name for name, _ in xattrs])
    need(sum(len(name) + len(content) for name, content in xattrs) <= XATTRS_MAX, "extended attributes over 1 MiB")
    node.entry = {
        "type": TYPES[kind], "mode": number(value["m"], 0, 0o7777),
        "uid": uid, "gid": gid, "user": user, "group": group,
        "mtime": parse_time(value["mt"]), "ctime": parse_time(value["ct"]), "device": device, "inode": inode,
        "links": number(links, 0, U32), "xattrs": [[to_byte_text(name), content.hex()] for name, content in xattrs],
    }
    if kind == FILE:
        parse_content(node, value, packs)
    elif kind == DIRECTORY:
        node.root = tree_ref(value["r"], packs)
    elif kind == SYMLINK:
        node.entry["target"] = to_byte_text(octets(value["l"], 1, 4095))
    elif kind in (CHAR_DEVICE, BLOCK_DEVICE):
        node.entry["device_number"] = list_of(value["d"], lambda item: number(item, 0, U32), 2)
    return node


def parse_content(node, value, packs):
    def content_page(item):
        content_bytes, ref = list_of(item, lambda part: part, 2)
        return number(content_bytes), tree_ref(ref, packs)

    need(not ("c" in value and "cp" in value), "a file with both chunks and content pages")
    node.bytes = number(value.get("s", 0))
    node.chunks = list_of(value.get("c", []), lambda item: chunk_ref(item, packs))
    node.pages = list_of(value.get("cp", []), content_page)
    node.holes = list_of(value.get("h", []), lambda item: list_of(item, number, 2))
    need(len(node.holes) <= HOLES_MAX, "too many holes")
    end = -1
    for offset, length in node.holes:
        need(offset > end and length >= 1 and offset + length <= node.bytes, "holes out of order or out of bounds")
        end = offset + length
    data_bytes = sum(ref.length for ref in node.chunks) + sum(length for length, _ in node.pages)
    hole_bytes = sum(length for _, length in node.holes)
    need(data_bytes + hole_bytes == node.bytes, "chunks and holes do not add up to the length")
    node.entry.update(bytes=node.bytes, holes=node.holes)


# ---- a kloset -------------------------------------------------------------------------------------------------


class Kloset:
    def __init__(self, store, passphrase=None, key_file=None):
        self.store = store
        self.header = parse_header(store.get("kloset.json", HEADER_MAX))
        self.id = self.header.id
        self.keys = self._open_any_slot(passphrase, key_file)
        self.sealing_key = functools.lru_cache(None)(self._sealing_key)
        self.footer = functools.lru_cache(64)(self._footer)
        self.frame = functools.lru_cache(8)(self._frame)  # content
        self.tree_frame = functools.lru_cache(32)(self._frame)

    def _open_any_slot(self, passphrase, key_file):
        write_only = False
        for name in self._names("keys", r"keys/([0-9a-f]{32})\.json"):
            try:
                slot = parse_slot(self.store.get(name, HEADER_MAX), self.id, bytes.fromhex(name[5:37]))
            except Damaged as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            if (slot.cost is None) != (passphrase is None):
                continue
            wrapping_key = key_file_key(key_file) if slot.cost is None else passphrase_key(passphrase, *slot.cost)
            try:
                keys = open_slot(slot, wrapping_key)
            except Damaged:
                continue
            if not hmac.compare_digest(keyed_hash(keys.header_mac, self.header.bound), self.header.mac):
                continue
            if keys.private:
                return keys
            write_only = True
        raise Damaged("the secret opens a write-only slot, which cannot read" if write_only else "the secret is wrong")

    def _names(self, prefix, pattern):
        return [name for name in self.store.names(prefix) if re.fullmatch(pattern, name)]

    def _sealing_key(self, session):
        return sealing_key_of(x25519(self.keys.private, session), session, self.keys.public, self.keys.psk, self.id)

    def _open(self, key, kind, name, sealed, limit):
        return unpack(unseal(key, sealed, additional_data(kind, self.id, name)), limit)

    # -- packs

    def packs(self):
        names = self._names("packs", r"packs/[0-9a-f]{64}/[0-9a-f]{8}")
        return [(bytes.fromhex(name[6:70]), int(name[71:], 16)) for name in names]

    def _footer(self, session, pack):
        name = pack_name(session, pack)
        size = self.store.size(name)
        need(self.store.get(name, PACK_MAX, 0, 8) == b"KLOSET1P", f"{name}: not a pack")
        length = struct.unpack("<I", self.store.get(name, PACK_MAX, size - 36, 4))[0]
        start = size - 36 - length
        need(start >= 8, f"{name}: the footer begins too early")
        sealed = self.store.get(name, PACK_MAX, start, length)
        raw = self._open(self.sealing_key(session), "pack footer", name.encode(), sealed, FOOTER_MAX)
        return parse_footer(raw, start)

    def check_pack(self, session, pack):
        """The digest and the footer of a pack."""
        name = pack_name(session, pack)
        content = self.store.get(name, PACK_MAX)
        need(len(content) >= 44 and blake3(content[:-32]).digest() == content[-32:], f"{name}: not its digest")
        self.footer(session, pack)

    def _frame(self, session, pack, offset, length):
        sealed = self.store.get(pack_name(session, pack), PACK_MAX, offset, length)
        return self._open(self.sealing_key(session), "frame", session, sealed, RAW_FRAME_MAX)

    @staticmethod
    def _take(raw, ref, key):
        need(ref.chunk_offset + ref.length <= len(raw), "a chunk that reaches over its frame")
        chunk = raw[ref.chunk_offset : ref.chunk_offset + ref.length]
        need(hmac.compare_digest(keyed_hash(key, chunk), ref.id), f"the chunk {ref.id.hex()} has another id")
        return chunk

    def _tree_at(self, ref):
        kind, frames = self.footer(ref.session, ref.pack)
        need(kind == TREES, "a tree reference into a pack of content")
        need(ref.frame < len(frames), "a frame that its pack does not have")
        offset, length, chunks = frames[ref.frame]
        raw = self.tree_frame(ref.session, ref.pack, offset, length)
        need(sum(length for _, length in chunks) == len(raw), "a frame whose chunks do not add up to its length")
        return self._take(raw, ref, self.keys.tree_id)

    def _chunk_at(self, ref):
        raw = self.frame(ref.session, ref.pack, ref.frame_offset, ref.frame_length)
        return self._take(raw, ref, self.keys.chunk_id)

    def tree(self, ref):
        return self._with_index(self._tree_at, ref, TREES)

    def chunk(self, ref):
        return self._with_index(self._chunk_at, ref, DATA)

    def _with_index(self, take, ref, kind):
        try:
            return take(ref)
        except Damaged as error:
            where = f"{pack_name(ref.session, ref.pack)}: {error}"
        # Where a prune says that it went, or the index.
        for other in [*self.went(ref, kind), *self.moved.get((kind, ref.id), [])]:
            try:
                if other.length == ref.length:
                    return take(other)
            except Damaged as error:
                where += f"; {pack_name(other.session, other.pack)}: {error}"
        raise Damaged(where)

    # -- index runs, pending lists

    def run(self, name):
        content = self.store.get(name, RUN_MAX)
        need(content[:8] == b"KLOSET1I", "not an index run")
        return parse_run(self._open(self.keys.index, "index run", name.encode(), content[8:], RUN_MAX))

    def runs(self):
        return self._names("index", r"index/[0-9a-f]{32}")

    @functools.cached_property
    def moved(self):
        """The index: references by kind of pack and id."""
        index = collections.defaultdict(list)
        for name in self.runs():
            try:
                self._refer(self.run(name), index)
            except Damaged as error:
                print(f"{name}: {error}", file=sys.stderr)
        return index

    def _refer(self, run, index):
        packs, entries = run
        for ident, place, frame, offset, length, chunk_offset, chunk_length in entries:
            session, pack, kind, _ = packs[place]
            located = (frame,) if kind == TREES else (offset, length)
            reference = TreeRef if kind == TREES else ChunkRef
            index[kind, ident].append(reference(ident, chunk_length, session, pack, *located, chunk_offset))

    def check_joined(self, name):
        """That a joined run says what the runs say that it stands for, if all are there."""
        content = self.store.get(name, RUN_MAX)
        need(content[:8] == b"KLOSET1J", "not a joined index run")
        raw = self._open(self.keys.moved, "joined index run", name.encode(), content[8:], RUN_MAX)
        need(len(raw) >= 8, "too short for a joined index run")
        version, count = struct.unpack_from("<II", raw)
        need(version == 1, f"version {version} is not known")
        need(1 <= count <= JOINED_RUNS_MAX and len(raw) >= 8 + 16 * count, "a joined index run of no run, or of too many")
        names = ["index/" + raw[8 + 16 * at : 24 + 16 * at].hex() for at in range(count)]
        said = self._said(parse_run(raw[8 + 16 * count :]))
        if set(names) <= set(self.runs()):
            need(said == set().union(*(self._said(self.run(run)) for run in names)), "it does not say what its runs say")

    @staticmethod
    def _said(run):
        packs, entries = run
        return {(packs[entry[1]], entry[0], *entry[2:]) for entry in entries}

    def moved_runs(self, name):
        """Where the chunks of packs went: session, pack, and as in an index run."""
        content = self.store.get(name, MOVED_MAX)
        need(content[:8] == b"KLOSET1M" and len(content) >= 12, "not a list of moved chunks")
        start = 12 + struct.unpack_from("<I", content, 8)[0]
        need(start <= min(len(content), MOVED_HEAD_MAX), "a table that is too long")
        limit = 8 + 40 * MOVED_PACKS_MAX
        table = self._open(self.keys.moved, "moved packs", name.encode(), content[12:start], limit)
        need(len(table) >= 8, "a table without a head")
        version, count = struct.unpack_from("<II", table)
        need(version == 1, f"version {version} is not known")
        need(len(table) == 8 + 40 * count, "a table of another length")
        rows = list(struct.iter_unpack("<32sII", table[8:]))
        need(rows == sorted(rows, key=lambda row: row[:2]), "packs that are not sorted")
        need(start + sum(length for _, _, length in rows) == len(content), "another length than its table says")
        runs = []
        for session, pack, length in rows:
            sealed, start = content[start : start + length], start + length
            raw = self._open(self.keys.moved, "moved chunks", pack_name(session, pack).encode(), sealed, RUN_MAX)
            packs, entries = parse_run(raw)
            runs.append((session, pack, (packs, list(entries))))
        return runs

    @functools.cached_property
    def emptied(self):
        """What prunes said: references by the pack that was emptied, kind and id."""
        index = collections.defaultdict(lambda: collections.defaultdict(list))
        for name in self._names("index/moved", r"index/moved/[0-9a-f]{32}"):
            try:
                for session, pack, run in self.moved_runs(name):
                    self._refer(run, index[session, pack])
            except Damaged as error:
                print(f"{name}: {error}", file=sys.stderr)
        return index

    def went(self, ref, kind, left=8):
        """Where prunes moved a chunk, one after another."""
        for other in self.emptied.get((ref.session, ref.pack), {}).get((kind, ref.id), []) if left else []:
            yield other
            yield from self.went(other, kind, left - 1)

    def check_run(self, name):
        """That a run agrees with the footers of those of its packs that are there."""
        packs, entries = self.run(name)
        present = set(self.packs())
        chunks_of = {}
        for place, (session, pack, kind, length) in enumerate(packs):
            if (session, pack) in present:
                where = pack_name(session, pack)
                need(self.store.size(where) == length, f"{where} has another length")
                footer_kind, frames = self.footer(session, pack)
                need(footer_kind == kind, f"{where} is of another kind")
                chunks_of[place] = set()
                for number_, (offset, sealed_length, chunks) in enumerate(frames):
                    start = 0
                    for ident, chunk_length in chunks:
                        chunks_of[place].add((ident, place, number_, offset, sealed_length, start, chunk_length))
                        start += chunk_length
        for entry in entries:
            need(entry[1] not in chunks_of or entry in chunks_of[entry[1]],
                 f"{entry[0].hex()} is not where the run says in {pack_name(*packs[entry[1]][:2])}")

    def pending(self, name):
        content = self.store.get(name, PENDING_MAX)
        need(content[:8] == b"KLOSET1D", "not a pending list")
        return parse_pending(self._open(self.keys.index, "pending list", name.encode(), content[8:], PENDING_MAX))

    def check_store(self):
        for session, pack in self.packs():
            with_name(pack_name(session, pack), self.check_pack, session, pack)
        for name in self.runs():
            with_name(name, self.check_run, name)
        for name in self._names("index/joined", r"index/joined/[0-9a-f]{32}"):
            with_name(name, self.check_joined, name)
        for name in self._names("index/moved", r"index/moved/[0-9a-f]{32}"):
            with_name(name, self.moved_runs, name)
        for name in self._names("pending", r"pending/[0-9a-f]{32}"):
            with_name(name, self.pending, name)

    # -- snapshots and trees

    def snapshots(self):
        names = self._names("snapshots", r"snapshots/[0-9]{8}T[0-9]{9}Z-[0-9a-f]{32}")
        return [name for name in names if is_time(name[10:29])]

    def snapshot(self, name):
        content = self.store.get(name, MANIFEST_MAX)
        need(content[:8] == b"KLOSET1S" and len(content) >= 40, "not a snapshot")
        key = self.sealing_key(content[8:40])
        raw = self._open(key, "snapshot", name.encode(), content[40:], MANIFEST_MAX)
        return parse_manifest(raw, bytes.fromhex(name[30:]))

    def _page(self, ref, first, bound):
        """A page, after the checks for whoever comes to it from a branch (first is not None)."""
        nodes, entries = parse_page(self.tree(ref))
        if first is not None:
            names = [node.name for node in nodes] if entries is None else [entry[0] for entry in entries]
            need(names and names[0] == first, "a page with another first name than its branch says")
            need(bound is None or names[-1] < bound, "a page that reaches into the next")
        return nodes, entries

    def nodes(self, ref, first=None, bound=None, branches=0):
        """The nodes of a directory, in order."""
        nodes, entries = self._page(ref, first, bound)
        if entries is None:
            yield from nodes
            return
        need(branches < BRANCHES_MAX, "too many branches above a leaf")
        for place, (name, expected, child) in enumerate(entries):
            child_bound = entries[place + 1][0] if place + 1 < len(entries) else bound
            counted = 0
            for node in self.nodes(child, name, child_bound, branches + 1):
                counted += 1
                yield node
            need(counted == expected, "a branch that counts its nodes wrongly")

    def look_up(self, ref, name):
        first = bound = None
        for _ in range(BRANCHES_MAX + 1):
            nodes, entries = self._page(ref, first, bound)
            if entries is None:
                place = bisect.bisect_left(nodes, name, key=lambda node: node.name)
                return nodes[place] if place < len(nodes) and nodes[place].name == name else None
            place = bisect.bisect_right(entries, name, key=lambda entry: entry[0]) - 1
            if place < 0:
                return None
            bound = entries[place + 1][0] if place + 1 < len(entries) else bound
            first, _, ref = entries[place]
        raise Damaged("too many branches above a leaf")

    def walk(self, root):
        """(path, node) of everything below, a directory before what it holds."""
        stack = [(b"", self.nodes(root))]
        while stack:
            path, nodes = stack[-1]
            node = with_name(path or b"/", next, nodes, None)
            if node is None:
                stack.pop()
                continue
            yield path + b"/" + node.name, node
            if node.kind == DIRECTORY:
                stack.append((path + b"/" + node.name, self.nodes(node.root)))

    def data(self, node):
        """The data of a file, chunk by chunk: its content without the holes."""
        yield from map(self.chunk, node.chunks)
        for content_bytes, ref in node.pages:
            chunks = parse_content_page(self.tree(ref))
            need(sum(chunk.length for chunk in chunks) == content_bytes, "a content page of another length")
            yield from map(self.chunk, chunks)

    def content(self, node):
        """The content of a file in pieces of at most a chunk, zeros for the holes."""
        done, holes = 0, collections.deque(node.holes)

        def zeros():
            left = holes.popleft()[1]
            while left:
                yield bytes(min(left, MIB))
                left -= min(left, MIB)

        for chunk in self.data(node):
            while holes and holes[0][0] < done + len(chunk):
                before, length = holes[0][0] - done, holes[0][1]
                yield chunk[:before]
                yield from zeros()
                chunk, done = chunk[before:], done + before + length
            yield chunk
            done += len(chunk)
        while holes:  # only one can be left, at the end of the data
            yield from zeros()

    def describe(self, path, node):
        entry = {"path": to_byte_text(path), **node.entry}
        if node.kind == FILE:
            hasher = blake3()
            for chunk in self.data(node):
                hasher.update(chunk)
            entry["blake3_of_data"] = hasher.hexdigest()
        return entry

    def document(self):
        snapshots = []
        for name in self.snapshots():
            manifest, root = with_name(name, self.snapshot, name)
            entries = [with_name(path, self.describe, path, node) for path, node in self.walk(root)]
            snapshots.append({"object": name, "manifest": manifest, "entries": entries})
        return {"id": self.id.hex(), "snapshots": snapshots}


def with_name(name, call, *arguments):
    try:
        return call(*arguments)
    except Damaged as error:
        raise Damaged(f"{name if isinstance(name, str) else shown(name)}: {error}") from None


# ---- commands -------------------------------------------------------------------------------------------------


def shown(path):
    def character(c):
        printable = c.isprintable() and c != "\\"
        return c if printable else "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "surrogateescape"))

    return "".join(map(character, path.decode("utf-8", "surrogateescape")))


def command_list(kloset):
    for name in kloset.snapshots():
        _, root = with_name(name, kloset.snapshot, name)
        print(name)
        for path, node in kloset.walk(root):
            print("  " + shown(path) + ("/" if node.kind == DIRECTORY else ""))


def command_dump(kloset, prefix, path):
    names = [name for name in kloset.snapshots() if name[30:].startswith(prefix)]
    need(len(names) == 1, f"{len(names)} snapshots have an id that begins with {prefix}")
    _, ref = with_name(names[0], kloset.snapshot, names[0])
    node = None
    for component in filter(None, os.fsencode(path).split(b"/")):
        need(node is None or node.kind == DIRECTORY, f"{path}: not there")
        node = kloset.look_up(ref if node is None else node.root, component)
        need(node is not None, f"{path}: not there")
    need(node is not None and node.kind == FILE, f"{path}: not a file")
    for piece in kloset.content(node):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def differences(found, expected, where="$"):
    if isinstance(found, dict) != isinstance(expected, dict) or isinstance(found, bool) != isinstance(expected, bool):
        yield f"{where}: {json.dumps(found)[:200]} instead of {json.dumps(expected)[:200]}"
    elif isinstance(found, dict):
        for key in [*found, *(key for key in expected if key not in found)]:
            if key in found and key in expected:
                yield from differences(found[key], expected[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: {'not expected' if key in found else 'missing'}"
    elif isinstance(found, list) and isinstance(expected, list):
        for place, (a, b) in enumerate(zip(found, expected)):
            yield from differences(a, b, f"{where}[{place}]")
        if len(found) != len(expected):
            yield f"{where}: {len(found)} items instead of {len(expected)}"
    elif found != expected:
        yield f"{where}: {json.dumps(found)[:200]} instead of {json.dumps(expected)[:200]}"


def command_verify(kloset, expected_path):
    expected = from_json(pathlib.Path(expected_path).read_bytes())
    kloset.check_store()
    found = [line for _, line in zip(range(MAX_DIFFERENCES), differences(kloset.document(), expected))]
    for line in found:
        print(line)
    need(not found, "not what was expected")


# ---- self-test ------------------------------------------------------------------------------------------------


def seal(key, nonce, content, additional):
    return nonce + sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(content, additional, nonce, key)


def gear_tables(seed):
    table = [int.from_bytes(hashlib.md5(bytes([i]) * 64).digest()[:8], "big") for i in range(256)]
    return table, [g ^ seed for g in table], [((g << 1) ^ (seed << 1)) & U64 for g in table]


def cut(content, least, average, most, mask_s, mask_l, gear, doubled):
    """The length of the first chunk."""
    n = len(content)
    if n <= least:
        return n
    center = average
    if n > most:
        n = most
    elif n < center:
        center = n
    h = 0
    for start, end, mask in ((least // 2, center // 2, mask_s), (max(least, center) // 2, n // 2, mask_l)):
        mask_doubled = (mask << 1) & U64
        for i in range(start, end):
            h = ((h << 2) + doubled[content[2 * i]]) & U64
            if not h & mask_doubled:
                return 2 * i
            h = (h + gear[content[2 * i + 1]]) & U64
            if not h & mask:
                return 2 * i + 1
    return n


def vectors_of(document):
    section = document.split("\n## Test vectors\n")[1].split("```")[1].removeprefix("text\n")
    vectors = {}
    for line in section.split(";"):
        if line.strip():
            name, value = line.split(" = " if " = " in line else " =\n", 1)
            vectors[name.strip()] = " ".join(value.split())
    return vectors


class SelfTest:
    """The vectors that were computed again; `given` are those the others start from."""

    given = ["kloset id", "master key", "key file", "salt", "decomposed passphrase"]

    def __init__(self, vectors):
        self.vectors, self.checked, self.wrong = vectors, [], []

    def raw(self, name):
        return bytes.fromhex(self.vectors[name])

    def check(self, name, value, form=lambda value: value.hex()):
        self.checked.append(name)
        if form(value) != self.vectors.get(name, "").replace(" ", "" if name != "cuts" else " "):
            self.wrong.append(name)
            print(f"WRONG {name}: {form(value)}")

    def that(self, name, condition):
        self.checked.append(name)
        if not condition:
            self.wrong.append(name)
            print(f"WRONG {name}")


def command_selftest(path):
    document = pathlib.Path(path).read_text("utf-8")
    test = SelfTest(vectors_of(document))
    raw, check = test.raw, test.check
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", document, re.DOTALL)]
    header, full, write_only, manifest, pending = examples
    kloset_id, keys = raw("kloset id"), Keys(raw("master key"))

    for name in ("chunk id", "tree id", "index", "header mac", "private", "public", "moved"):
        check(f"{name} key", getattr(keys, name.replace(" ", "_")))
    check("session psk", keys.psk)
    check("chunker seed", keys.seed.to_bytes(8, "little"))  # the bytes, other than the numbers of "gear"
    check('chunk id of "kloset"', keyed_hash(keys.chunk_id, b"kloset"))
    check("chunk id of nothing", keyed_hash(keys.chunk_id, b""))
    check('tree id of "kloset"', keyed_hash(keys.tree_id, b"kloset"))
    check("header mac", keyed_hash(keys.header_mac, parse_header(json.dumps(header).encode()).bound))
    test.that("header mac in the example", header["mac"] == test.vectors["header mac"])

    session = x25519_public(b"\x03" * 32)  # a writer's side of the session, and a reader's
    check("session", session)
    check("sealing key", sealing_key_of(x25519(b"\x03" * 32, keys.public), session, keys.public, keys.psk, kloset_id))
    sealing_key = sealing_key_of(x25519(keys.private, session), session, keys.public, keys.psk, kloset_id)
    check("sealing key", sealing_key)
    try:
        x25519(keys.private, bytes(32))
        test.that("a session of zeros is refused", False)
    except Damaged:
        test.that("a session of zeros is refused", True)

    frame_data = additional_data("frame", kloset_id, session)
    check("additional data of a frame", frame_data)
    check("additional data of an index run", additional_data("index run", kloset_id, b"index/" + b"07" * 16))
    snapshot_name = f"snapshots/20261122T135800123Z-{manifest['id']}"
    check("additional data of a snapshot", additional_data("snapshot", kloset_id, snapshot_name.encode()))
    check("sealed frame", seal(sealing_key, b"\x04" * 24, b"\0kloset", frame_data))
    test.that("sealed frame, opened", unpack(unseal(sealing_key, raw("sealed frame"), frame_data), 6) == b"kloset")
    test.that("packed content", unpack(raw("packed content"), 100) == b"a" * 100)

    passphrase, cost = b"correct horse battery staple", (raw("salt"), 64, 1, 1)
    key_file = test.vectors["key file"].encode() + b"\n"
    check("wrapping key of the key file", key_file_key(key_file))
    check("wrapping key of the passphrase", passphrase_key(passphrase, *cost))
    composed = unicodedata.normalize("NFC", raw("decomposed passphrase").decode()).encode()
    check("composed passphrase", composed)
    check("wrapping key of the composed passphrase", passphrase_key(composed, *cost))
    check("wrapping key of the composed passphrase", passphrase_key(raw("decomposed passphrase"), *cost))
    plain = {"full": raw("master key"),
             "write-only": keys.chunk_id + keys.index + keys.seed.to_bytes(8, "little") + keys.public}
    wrapping = {"full": key_file_key(key_file), "write-only": passphrase_key(passphrase, *cost)}
    for slot in (full, write_only):
        vector = f"sealed {slot['kind']} slot"
        test.that(f"{vector} in the example", slot["sealed"] == test.vectors[vector][:8] + "…")
        slot["sealed"] = test.vectors[vector].replace(" ", "")
        parsed = parse_slot(json.dumps(slot).encode(), kloset_id, bytes.fromhex(slot["id"]))
        check(vector, seal(wrapping[slot["kind"]], parsed.sealed[:24], plain[slot["kind"]], parsed.bound))
        opened = open_slot(parsed, wrapping[slot["kind"]])
        test.that(f"{vector}, opened", all(getattr(opened, name) == getattr(keys, name) for name in vars(keys)
                                           if name not in ("private", "moved") or slot is full))

    table, gear, doubled = gear_tables(keys.seed)
    test.that("GEAR[0]", table[0] == 0x3B5D3C7D207E37DC)
    for name, value in (("gear 0", gear[0]), ("gear 255", gear[255]), ("gear 0 doubled", doubled[0])):
        check(name, value, "{:016x}".format)
    masks = {int(bits): int(mask, 16) for bits, mask in re.findall(r"\b(\d+) ([0-9a-f]{16})\b", document)}
    content, cuts = memoryview(blake3(b"\x03" + bytes(7)).digest(length=8 * MIB)), []
    while content:
        cuts.append(cut(content, 256 * KIB, MIB, 4 * MIB, masks[21], masks[19], gear, doubled))
        content = content[cuts[-1] :]
    check("cuts", cuts, lambda value: " ".join(map(str, value)))

    one, two = ((keyed_hash(keys.chunk_id, chunk), 4) for chunk in (b"one\n", b"two\n"))
    encode = functools.partial(msgpack.packb, use_bin_type=True)
    footer = encode({"v": 1, "k": 0, "f": [{"o": 8, "l": 49, "c": [one, two]}]})
    check("footer", footer)
    name = pack_name(session, 0).encode()
    pack = b"KLOSET1P" + seal(sealing_key, b"\x04" * 24, b"\0one\ntwo\n", frame_data)
    start = len(pack)
    sealed_footer = raw("pack")[start:-36]  # opened and sealed again: its codec is its writer's choice
    opened = unseal(sealing_key, sealed_footer, additional_data("pack footer", kloset_id, name))
    test.that("footer, opened", unpack(opened, FOOTER_MAX) == footer and parse_footer(footer, start)[0] == DATA)
    pack += seal(sealing_key, b"\x05" * 24, opened, additional_data("pack footer", kloset_id, name))
    pack += struct.pack("<I", len(sealed_footer))
    check("pack", pack + blake3(pack).digest())
    entries = sorted([(one[0], 0, 0, 8, 49, 0, 4), (two[0], 0, 0, 8, 49, 4, 4)])
    run = struct.pack("<III32sIIQ", 1, 1, 2, session, 0, 0, len(pack) + 32)
    check("index run", run + b"".join(struct.pack("<32s6I", *entry) for entry in entries))

    refs = [[ident, 4, 0, 8, 49, offset] for (ident, _), offset in ((one, 0), (two, 4))]
    check("content page", encode({"v": 1, "p": [[session, 0]], "c": refs}))
    check("empty leaf", encode({"v": 1, "n": []}))
    # Not told by the text, so taken from the vectors: times, identity, the entries of the branch.
    times = {key: value for key, value in from_msgpack(raw("leaf"))["n"][0].items() if key in ("mt", "ct", "i")}
    root = [b"\x08" * 32, 300, 1, 2, 70000]
    common = {"m": 0o644, "w": 0, **times}
    leaf = {"v": 1, "p": [[session, 0], [session, 1]], "w": [[1000, 100, "anna", "users"]], "n": [
        {"n": b"a", "t": 0, **common, "s": 4104, "c": refs, "h": [[4, 4096]], "x": [[b"user.k", b"\0v"]]},
        {"n": b"b", "t": 1, **common, "r": root},
        {"n": b"c", "t": 2, **common, "l": b"a"},
    ]}
    check("leaf", encode(leaf))
    check("tree id of the leaf", keyed_hash(keys.tree_id, raw("leaf")))
    _, branch = parse_page(raw("branch"))
    test.that("branch, decoded", len(branch) == 2)
    check("branch", encode({"v": 1, "p": [[session, 1]], "b": [
        [first, n, [ref.id, ref.length, 0, ref.frame, ref.chunk_offset]] for first, n, ref in branch]}))

    store = Memory({
        "kloset.json": json.dumps(header).encode(), f"packs/{session.hex()}/00000000": raw("pack"),
        **{f"keys/{slot['id']}.json": json.dumps(slot).encode() for slot in (full, write_only)},
        "index/" + "07" * 16: b"KLOSET1I" + seal(keys.index, bytes(24), b"\0" + raw("index run"),
                                                 additional_data("index run", kloset_id, b"index/" + b"07" * 16)),
        snapshot_name: b"KLOSET1S" + session + seal(sealing_key, bytes(24), b"\0" + json.dumps(manifest).encode(),
                                                    additional_data("snapshot", kloset_id, snapshot_name.encode())),
    })
    kloset = Kloset(store, key_file=key_file)
    kloset.check_store()
    (file, directory, link), _ = parse_page(raw("leaf"))
    test.that("the file of the leaf", b"".join(kloset.content(file)) == b"one\n" + bytes(4096) + b"two\n")
    ref = directory.root
    test.that("the others of the leaf", (ref.frame, ref.length, link.entry["target"]) == (2, 300, "a"))
    test.that("content page, decoded", parse_content_page(raw("content page")) == file.chunks)
    test.that("the example of a manifest", kloset.snapshots() == [snapshot_name]
              and kloset.snapshot(snapshot_name) == (manifest, ref))
    test.that("the example of a pending list", parse_pending(json.dumps(pending).encode()) == [(session, 0)])

    for name in dict.fromkeys(test.checked):
        print(f"{'wrong' if name in test.wrong else 'ok   '} {name}")
    for name in test.given:
        print(f"given {name}")
    left = [name for name in test.vectors if name not in test.checked and name not in test.given]
    need(not left, f"not checked: {', '.join(left)}")
    need(not test.wrong, "the text and this program differ")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--passphrase-file")
    secret.add_argument("--key-file")
    parser.add_argument("folder", metavar="FOLDER | selftest")
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    commands = {"list": (command_list, 0), "dump": (command_dump, 2), "verify": (command_verify, 1),
                "json": (lambda kloset: print(json.dumps(kloset.document(), indent=1)), 0)}
    try:
        if options.folder == "selftest":
            return command_selftest(options.command)
        call, arguments_len = commands.get(options.command, (None, 0))
        if call is None or len(options.arguments) != arguments_len:
            parser.error("see --help")
        if options.passphrase_file:
            content = pathlib.Path(options.passphrase_file).read_bytes()
            kloset = Kloset(Folder(options.folder), passphrase=re.sub(rb"\r?\n\Z", b"", content))
        elif options.key_file:
            kloset = Kloset(Folder(options.folder), key_file=pathlib.Path(options.key_file).read_bytes())
        else:
            parser.error("needs --passphrase-file or --key-file")
        call(kloset, *options.arguments)
    except (Damaged, OSError) as error:
        sys.exit(f"read_kloset.py: {error}")


if __name__ == "__main__":
    main()
