"""Bytes for fuzzing: what damages them, and valid seeds of every format.

Everything is made from a `random.Random`, so that equal seeds make equal bytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import sys
from collections.abc import Callable, Sequence

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGEST = 64 << 10

# Bytes that have a meaning somewhere, and lengths at the edges of their types.
_BYTES = (0, 1, 2, 9, 10, 13, 0x20, 0x22, 0x2C, 0x5C, 0x7F, 0x80, 0xC0, 0xED, 0xFE, 0xFF)
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def chance(rng: random.Random, part: float) -> bool:
    return rng.random() < part


def few(rng: random.Random, most: int) -> int:
    """From 0 on, small numbers more often."""
    return int(most * rng.random() ** 3)


def mutated(rng: random.Random, data: bytes, tokens: Sequence[bytes], most: int = 6) -> bytes:
    """`data` after one to `most` changes; `tokens`: what means something in its format."""
    result = bytearray(data)
    for _ in range(1 + few(rng, most)):
        rng.choice(_CHANGES)(rng, result, tokens)
        del result[LARGEST:]
    return bytes(result)


def _span(rng: random.Random, data: bytearray) -> slice:
    start = rng.randint(0, len(data))
    return slice(start, min(len(data), start + 1 + few(rng, 200)))


def _flip_bit(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_BYTES)


def _insert_token(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice(tokens)


def _overwrite_token(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    token = rng.choice(tokens)
    at = rng.randint(0, len(data))
    data[at : at + len(token)] = token


def _delete(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    del data[_span(rng, data)]


def _double(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    span = _span(rng, data)
    data[span.stop : span.stop] = data[span] * (1 + few(rng, 40))


def _move(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    span = _span(rng, data)
    piece = data[span]
    at = rng.randint(0, len(data))
    data[at : at + len(piece) * rng.randrange(2)] = piece


def _truncate(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    del data[rng.randint(0, len(data)) :]


def _behead(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    del data[: 1 + few(rng, len(data))]


def _set_number(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _set_varint(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    number = varint(rng.choice((1, -1)) * (rng.choice(_NUMBERS) ** rng.choice((1, 1, 2))))
    data[at : at + rng.choice((0, 1, len(number)))] = number


def _random_bytes(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    piece = rng.randbytes(1 + few(rng, 60))
    data[at : at + len(piece) * rng.randrange(2)] = piece


_CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip_bit, _flip_bit, _set_byte, _set_byte, _insert_token, _insert_token, _insert_token,
    _overwrite_token, _overwrite_token, _delete, _double, _move, _truncate, _behead,
    _set_number, _set_varint, _random_bytes,
)  # fmt: skip


def varint(number: int) -> bytes:
    """Zigzag, as Avro and Thrift write numbers; of any size."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, 1, mtime=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: zstd.compress(data, 1),
}


def compressed(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A suffix and the bytes as stored under it; most often neither is changed."""
    if chance(rng, 0.85):
        return "", data
    suffix = rng.choice(list(COMPRESS))
    compress = COMPRESS[suffix]
    at = rng.randint(0, len(data))
    # Several members after one another are one stream.
    parts = [data[:at], data[at:]] if chance(rng, 0.3) else [data]
    stored = b"".join(map(compress, parts))
    if chance(rng, 0.3):
        stored = mutated(rng, stored, [b"\0" * 8, *(c(b"") for c in COMPRESS.values())], 3)
    return suffix, stored


_WORDS = (
    "a", "b", "x", "text", "id", "score", "prediction", "", " ", "1", "-1", "0.5", "1e999", "nan",
    "Infinity", "null", "true", "é", "日本", "\U0001f600", "\x85", "\u2028", "\ufeff", "\x00",
    "\x1b[31m",
    "a b", "\u0301", "\u202e", "99999999999999999999", "2024-01-01", "\x7f",
)  # fmt: skip


def word(rng: random.Random) -> str:
    if chance(rng, 0.003):
        return rng.choice("ab é") * few(rng, 5000)
    if chance(rng, 0.3):
        return str(rng.randrange(10 ** rng.randint(1, 20)))
    return rng.choice(_WORDS)


CSV_TOKENS = (
    b'"', b'""', b'"""', b",", b"\n", b"\r\n", b"\r", b"\n\n", b"\t", b";", b"|", b"\0", b'"\r',
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\xed\xa0\x80", b"\xc3", b"\x80",
    b"\xf0\x9f\x98", b',"', b'",', b'"\n"', b'"\r\n', b" ", b"\x1a", b"\x1b$B", b"\x1f\x8b",
    b"+AGE-",
    b"\\u0041", b"xn--", b"," * 300, b'"' * 301, b"\n" * 200, b"a" * 3000,
)  # fmt: skip


def csv_text(rng: random.Random, delimiter: str) -> str:
    """Rows, most of one width, quoted where they must be and sometimes where they need not."""
    if chance(rng, 0.1):  # no table at all
        tokens = ['"', "\n", "\r\n", "\r", delimiter, "a", "é", '""', " "]
        return "".join(rng.choices(tokens, k=few(rng, 400)))
    width = 1 + few(rng, 8)
    line_end = rng.choice(("\n", "\n", "\r\n"))
    lines = []
    for _ in range(few(rng, 25) + 1):
        cells = [
            _csv_cell(rng, delimiter) for _ in range(width if chance(rng, 0.97) else few(rng, 9))
        ]
        lines.append(delimiter.join(cells))
    if chance(rng, 0.9):
        lines[0] = delimiter.join(f"c{i}" for i in range(width))
    return line_end.join(lines) + (line_end if chance(rng, 0.8) else "")


def _csv_cell(rng: random.Random, delimiter: str) -> str:
    text = word(rng)
    if chance(rng, 0.15):
        text += rng.choice(('"', "\n", "\r\n", delimiter, "\r")) + word(rng)
    if chance(rng, 0.1) or any(c in text for c in ('"', "\n", "\r", delimiter)):
        return '"' + text.replace('"', '""') + '"'
    return text


JSON_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'\\"', b"\\\\", b"\\u0000",
    b"\\ud800", b"\\udc00",
    b"\\uD83D\\uDE00", b"\\u12", b"null", b"true", b"false", b"NaN", b"-Infinity", b"-",
    b"-0", b"01",
    b"1e", b"1.", b".5", b"1E+400", b"9" * 30, b"0" * 5000, b"9" * 5000, b"\n", b"\r\n",
    b"\r", b"\t", b" ",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\x80", b"\0", b"\x1f", b"{}",
    b"[]", b"{}\n",
    b'"a":', b'"prediction":1,', b"},{", b"},", b"[" * 400, b"]" * 400, b"[" * 3000, b'{"a":' * 300,
    b"}" * 300, b'{"a":' * 2000, b",," * 20, b"\n" * 300, b'""', b"/*", b"//",
)  # fmt: skip


def json_rows(rng: random.Random) -> list[bytes]:
    """Objects, mostly of one shape; sometimes enough of them to be read by templates."""
    names = [json_string(rng, word(rng)) for _ in range(few(rng, 6) + 1)]
    makers = [rng.choice(_JSON_VALUES) for _ in names]
    comma, colon = rng.choice(((",", ":"), (", ", ": "), (" ,\t", " : ")))
    rows = []
    count = rng.randint(32, 64) if chance(rng, 0.12) else 1 + few(rng, 15)
    odd = rng.choice((0.0, 0.02, 0.3))
    for _ in range(count):
        if chance(rng, odd):
            rows.append(json_value(rng, 0))
            continue
        makers_now = [rng.choice(_JSON_VALUES) if chance(rng, odd) else m for m in makers]
        members = [f"{n}{colon}{make(rng, 1)}" for n, make in zip(names, makers_now, strict=True)]
        if chance(rng, odd):
            rng.shuffle(members)
        rows.append("{" + comma.join(members) + "}")
    return [row.encode("utf-8", "surrogatepass") for row in rows]


def json_string(rng: random.Random, text: str) -> str:
    """A spelling of `text`; control characters may stay, which JSON forbids."""
    if chance(rng, 0.9) and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    parts = []
    for c in text:
        if c in '"\\' or chance(rng, 0.1):
            parts.append(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c)
        elif ord(c) < 32 and chance(rng, 0.9):
            parts.append(f"\\u{ord(c):04X}")
        else:
            parts.append(c)
    return '"' + "".join(parts) + '"'


def _json_number(rng: random.Random, depth: int) -> str:
    spelled = (
        "0",
        "-0",
        "1.10",
        "1e5",
        "-1E-7",
        "NaN",
        "-Infinity",
        "12345678",
        "123456789",
        "1e400",
    )
    return (
        rng.choice(spelled)
        if chance(rng, 0.5)
        else str(rng.randrange(-(10 ** rng.randint(1, 19)), 10**9))
    )


def json_value(rng: random.Random, depth: int) -> str:
    if depth > 4:
        return "0"
    return rng.choice(_JSON_VALUES)(rng, depth)


def _json_object(rng: random.Random, depth: int) -> str:
    names = (json_string(rng, word(rng)) for _ in range(few(rng, 5)))
    return "{" + ",".join(f"{name}:{json_value(rng, depth + 1)}" for name in names) + "}"


def _json_array(rng: random.Random, depth: int) -> str:
    return "[" + ",".join(json_value(rng, depth + 1) for _ in range(few(rng, 5))) + "]"


_JSON_VALUES: tuple[Callable[[random.Random, int], str], ...] = (
    _json_number, _json_number, _json_object, _json_array,
    lambda rng, depth: json_string(rng, word(rng)), lambda rng, depth: json_string(rng, word(rng)),
    lambda rng, depth: rng.choice(("null", "true", "false")),
)  # fmt: skip
