"""Mutations of small valid files, which depend only on the file and on the random numbers."""

import json
import random
import re
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

DIGITS = "<5000 digits>"  # Python refuses to write such a number
TOKENS = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b"\r", b"\n\n", b",", b";", b"\t", b"|", b"  "),
    *(b"../", b"/", b"/etc/passwd", b"file:///etc/passwd", b"http://localhost:1/a", b"concat:a|b", b"%d", b"{0.x}"),
    *(b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"{}"),
    *("\u2028".encode(), "\u202e".encode(), "é".encode(), b" " * 200_000, b"x" * 200_000, b"{0..999999999}"),
)
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x0FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 257, 4097, 2**31, 2**63, 10**30, DIGITS, 0.5, -0.0, 1e308, -1e-320),
    *(float("nan"), float("inf"), "", " ", "x", "é" * 50, "x" * 70_000, "\ud800", "\0", "a\nb", "../x", "/etc/passwd"),
    *("{}", "{0.__class__}", "{:>999999999}", "tiny", "ViT-B-16", "hf-hub:a/b", "local-dir:/tmp", "https://a:1/a"),
    *([], {}, [[]], [1, 2], ["a", "b"], [None], {"a": 1}, {"name": "ila"}, {"name": "lora", "rank": 10**8}),
    *({"name": []}, ["adapters", "head"], [{"name": "mit", "layers": 10**6}], [0] * 3000, {"0": "a", "1": "b"}),
)
KEYS = ("x", "name", "num_labels", "auto_map", "id2label", "dtype", "layers", "")
YAML_TOKENS = (
    *(b"&a ", b"*a", b"*b", b"<<: *a\n", b"!!python/object/apply:os.system ['touch x']", b"!!python/name:os.system "),
    *(b"!!binary x", b"!!timestamp 2000-01-01", b"!!set {a}", b"---\n", b"...\n", b"%YAML 9.9\n", b"- ", b": ", b"{"),
    *(b"|\n", b">\n", b"1_000", b"0x10", b"1:30", b".nan", b".inf", b"~", b"yes", b"\x85", b"? ", b"["),
    b"a: &a [" + b"x," * 50 + b"]\n",
)
# Offset and length of name, mode, size, kind, linked name, prefix, and the pieces of a sparse member.
TAR_FIELDS = (
    *((0, 100), (0, 100), (100, 8), (124, 12), (124, 12), (156, 1), (156, 1), (157, 100), (345, 155), (386, 12)),
)
TAR_NAMES = (
    *(b"a.mp4", b"/etc/passwd", b"../a.cls", b"a.json", b"b.txt", b"\xff.mp4", b"._a.mp4", b"a//b.cls", b".cls", b""),
)


def mutate_bytes(content: bytes, chance: random.Random, tokens: tuple[bytes, ...] = TOKENS) -> bytes:
    """Flip, cut, repeat, move and insert parts, once to four times."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((1, 1, 2, 4, 8, 40, len(data))))
        match chance.randrange(7):
            case 0 if start < len(data):
                data[start] ^= 1 << chance.randrange(8)
            case 1 if start < len(data):
                data[start] = chance.randrange(256)
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop]
            case 4:
                data[start:stop] = chance.randbytes(stop - start)
            case 5:
                other = chance.randrange(len(data) + 1)
                data[start:start] = data[other : other + chance.randrange(1, 60)]
            case _:
                data[start : chance.choice((start, stop))] = chance.choice(tokens)
    return bytes(data)


def mutate_lines(content: bytes, chance: random.Random) -> bytes:
    """Repeat, drop, join and swap lines and fields, or change bytes."""
    if chance.random() < 0.6:
        return mutate_bytes(content, chance)
    lines = content.splitlines(keepends=True)
    for _ in range(chance.choice((1, 2, 5))):
        at = chance.randrange(len(lines)) if lines else 0
        match chance.randrange(5):
            case 0:
                lines[at:at] = lines[at : at + 1] * chance.choice((1, 3, 2000))
            case 1:
                del lines[at : at + 1]
            case 2:
                lines[at : at + 1] = [line.rstrip(b"\n") for line in lines[at : at + 1]]
            case 3:
                chance.shuffle(lines)
            case _:
                sign = chance.choice((b",", b" ", b"\t"))
                fields = b"".join(lines[at : at + 1]).split(sign)
                fields.insert(chance.randrange(len(fields) + 1), chance.choice(TOKENS))
                lines[at : at + 1] = [chance.choice((sign, b",")).join(fields)]
    return b"".join(lines)


def mutate_tree(tree: Any, chance: random.Random) -> Any:
    """Return a JSON tree with a few values replaced, dropped, added, wrapped or exchanged."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return deepcopy(chance.choice(VALUES))
        owner, key = chance.choice(places)
        match chance.randrange(8):
            case 0:
                del owner[key]
            case 1:
                owner[key] = [owner[key]]
            case 2:
                other, name = chance.choice(places)
                owner[key] = json.loads(json.dumps(other[name]))
            case 3 if isinstance(owner, dict):
                owner[chance.choice((*KEYS, f"{key} "))] = owner.pop(key)
            case 4 if isinstance(owner, dict):
                owner[chance.choice(KEYS)] = deepcopy(chance.choice(VALUES))
            case 5 if isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
                owner[key] = owner[key] * chance.choice((-1, 2, 10, 1000)) + chance.choice((0, 1, -1))
            case _:
                owner[key] = deepcopy(chance.choice(VALUES))
    return tree


def _places(tree: Any) -> Any:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """Change values of a JSON file, repeat a key or nest a value deep, or change bytes."""
    kind = chance.random()
    if kind < 0.25:
        return mutate_bytes(content, chance)
    text = json.dumps(mutate_tree(json.loads(content), chance)).replace(f'"{DIGITS}"', "1" + "0" * 5000)
    if kind < 0.32 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + ", " + text[1:]
    elif kind < 0.36:
        depth = chance.choice((20, 40, 900, 100_000))
        text = text[:-1] + f', "x": {"[" * depth}{"]" * depth}' + text[-1]
    return text.encode(errors="surrogatepass")


def mutate_json_lines(content: bytes, chance: random.Random) -> bytes:
    """Change one JSON object of several, or lines."""
    if chance.random() < 0.5:
        return mutate_lines(content, chance)
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = mutate_json(lines[at], chance)
    return b"\n".join(lines)


def mutate_yaml(content: bytes, chance: random.Random) -> bytes:
    """Change values or text of a YAML file, given as JSON; insert anchors and tags."""
    if chance.random() < 0.5:
        return as_yaml(mutate_json(content, chance))
    text = "\n".join(_block_style(json.loads(content)))
    return mutate_bytes(as_yaml(text.encode()) + b"\n", chance, YAML_TOKENS + TOKENS)


def as_yaml(content: bytes) -> bytes:
    """Return JSON that YAML reads alike: `1e-08` is a text there."""
    return re.sub(rb"(?<![.\d])(\d+)e(?=-\d)", rb"\1.0e", content)


def _block_style(tree: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_block_style(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}")
    return lines


def mutate_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Change the header with a right or wrong length, or change bytes."""
    kind = chance.random()
    if kind < 0.3:
        return mutate_bytes(content, chance)
    size = struct.unpack("<Q", content[:8])[0]
    header, rest = content[8 : 8 + size], content[8 + size :]
    header = mutate_json(header, chance)
    size = len(header) if kind < 0.9 else chance.choice((0, 1, len(header) + 1, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + header + rest


def mutate_tar(content: bytes, chance: random.Random) -> bytes:
    """Change fields of headers, with a right checksum, or change bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(content, chance)
    data = bytearray(content)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, (field, length) = chance.choice(headers), chance.choice(TAR_FIELDS)
        if length == 1:
            value = chance.choice((*(b"%d" % kind for kind in range(8)), b"L", b"K", b"S", b"x", b"g", b"\xff", b"\0"))
        elif length >= 100:
            value = chance.choice(TAR_NAMES)
        else:
            number = chance.choice((*NUMBERS, 10**12, 2**62))
            large = b"\x80" + number.to_bytes(length - 1, "big") if length > 8 else b"7"
            value = chance.choice((b"%011o" % number, large, b"-1", b"\xff" * length, b""))
        data[at + field : at + field + length] = value[:length].ljust(length, b"\0")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def mutate_media(content: bytes, chance: random.Random) -> bytes:
    """Change numbers and bytes of a video or image, mostly in its header."""
    data = bytearray(content)
    header = max(data.find(b"moov"), data.find(b"moof"), 0) if chance.random() < 0.5 else 0
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        near = chance.random()
        limit = len(data) if near < 0.2 or header else min(len(data), 600)
        at = chance.randrange(header, max(limit, header + 1))
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([1 << chance.randrange(8)])
            case 2:
                data[at : at + 4] = chance.choice(NUMBERS).to_bytes(4, chance.choice(("big", "little")))
            case 3:
                del data[at : at + chance.randrange(1, 40)]
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 40)]
            case 5:
                data[at : at + 2] = chance.choice(NUMBERS[:7]).to_bytes(2, "big")
            case _:
                data[at : at + 4] = chance.choice((b"moov", b"trak", b"stsz", b"trun", b"elst", b"cmov", b"RIFF"))
    return bytes(data)
