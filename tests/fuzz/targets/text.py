"""CSV, TSV, JSON Lines and JSON arrays, with and without compression."""

from __future__ import annotations

import random
from pathlib import Path

from batchpredict.data.encoding import normal_encoding
from batchpredict.data.records import Dialect
from tests.fuzz import inputs
from tests.fuzz.harness import Target
from tests.fuzz.inputs import chance
from tests.fuzz.reading import Input, read

_ENCODINGS = (
    "utf-8", "utf-8-sig", "latin-1", "cp1252", "ascii", "utf-16", "utf-16-le", "utf-16-be",
    "utf-32",
    "utf-32-le", "utf-7", "shift_jis", "cp932", "gbk", "gb18030", "hz", "big5", "euc_kr", "johab",
    "iso2022_jp", "iso2022_kr", "cp037", "koi8-r", "mac_roman", "idna", "punycode",
    "unicode_escape",
    "raw_unicode_escape", "undefined", "charmap", "cp65001", "ptcp154", "tis_620",
)  # fmt: skip
_LIMITS = (*[16 << 20] * 7, 2, 25, 100, 1000)
_PIECES = (0, 0, 0, 0, 0, 0, 0, 1, 2, 5)


class _Csv:
    def case(self, rng: random.Random) -> Input:
        delimiter = rng.choice(
            (",", ",", "\t", ";", "|", " ", "a", "\0") if chance(rng, 0.1) else (",", "\t", ";")
        )
        written = rng.choice((delimiter, delimiter, delimiter, ","))
        encoding = "utf-8" if chance(rng, 0.8) else rng.choice(_ENCODINGS)
        data = _encoded(rng, inputs.csv_text(rng, written), encoding)
        if chance(rng, 0.6):
            data = inputs.mutated(rng, data, inputs.CSV_TOKENS)
        suffix, stored = inputs.compressed(rng, data)
        dialect = Dialect(
            delimiter,
            normal_encoding(encoding) if encoding != "cp65001" else "utf-8",
            chance(rng, 0.8),
            max_record_bytes=rng.choice(_LIMITS),
        )
        name = "tsv" if delimiter == "\t" else "csv"
        return Input(
            name,
            stored,
            dialect,
            suffix,
            chance(rng, 0.3),
            rng.choice(_PIECES),
            rng.getrandbits(32),
        )

    def check(self, case: Input, directory: Path) -> None:
        read(case, directory)


def _encoded(rng: random.Random, text: str, encoding: str) -> bytes:
    try:
        data = text.encode(encoding, "ignore")
    except (UnicodeError, LookupError):
        data = text.encode()
    return b"\xef\xbb\xbf" + data if chance(rng, 0.03) else data


class _Json:
    def __init__(self, json_array: bool) -> None:
        self._json_array = json_array

    def case(self, rng: random.Random) -> Input:
        rows = inputs.json_rows(rng)
        is_array = self._json_array != chance(rng, 0.05)
        if is_array:
            data = b"[" + rng.choice((b",", b",\n", b"\n, ")).join(rows) + b"]"
        else:
            line_end = rng.choice((b"\n", b"\n", b"\r\n", b" \n"))
            data = line_end.join(rows) + line_end * rng.randrange(2)
        if chance(rng, 0.6):
            data = inputs.mutated(rng, data, inputs.JSON_TOKENS)
        suffix, stored = inputs.compressed(rng, data)
        dialect = Dialect(json_array=self._json_array, max_record_bytes=rng.choice(_LIMITS))
        name = "json" if self._json_array else "jsonl"
        return Input(
            name,
            stored,
            dialect,
            suffix,
            chance(rng, 0.5),
            rng.choice(_PIECES),
            rng.getrandbits(32),
        )

    def check(self, case: Input, directory: Path) -> None:
        read(case, directory)


TARGETS: dict[str, Target] = {"csv": _Csv(), "jsonl": _Json(False), "json": _Json(True)}
