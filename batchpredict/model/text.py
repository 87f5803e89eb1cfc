"""The only import of tokenizers: text columns to token ids.

Hugging Face's exports name a graph's inputs: `input_ids`, `attention_mask`, `token_type_ids`,
`position_ids`, each [rows, tokens] of int64 or int32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Encoding, Tokenizer

from batchpredict.errors import ConfigInvalid
from batchpredict.model.columns import flags, is_json, is_text, json_values, plain
from batchpredict.model.contracts import Fault, Feeds, Measured, Prepared, Tensor
from batchpredict.model.duplicates import first_seen
from batchpredict.model.manifest import Template
from batchpredict.model.package import NO_LENGTH, ModelPackage
from batchpredict.model.session import InferenceFailed, Session

# Tokenizing costs about 1/100 of the inference and runs beside it; a thread pool of its own would
# take the cores from the callers of the session, and hangs in a forked child.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_MOST_ID = 2**31 - 1
_MOST_TYPE = 2**7 - 1
# Encodings are Python objects of about 1 kB; only this many live at a time.
_CHUNK_ROWS = 512


@dataclass(frozen=True)
class _Tokens:
    """Token ids of all rows one after the other; row i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: npt.NDArray[np.int32]
    type_ids: npt.NDArray[np.int8] | None
    offsets: npt.NDArray[np.int64]

    def rows(self, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The bits of each of these rows: rows of equal bits are fed equally."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        for start, end in zip(starts, ends, strict=True):
            kinds = b"" if self.type_ids is None else self.type_ids[start:end].tobytes()
            yield self.ids[start:end].tobytes() + kinds


@dataclass(frozen=True)
class TextEncoder:
    """Feeds of token ids for one text or a pair of texts per row.

    `max_length`: tokens of a row with its special tokens; None where nothing limits it.
    `width`: tokens of every row where the graph fixes it, else None.
    """

    inputs: tuple[Tensor, ...]
    tokenizer: Tokenizer = field(repr=False)
    texts: tuple[Template, ...]
    max_length: int | None
    truncate: bool
    pad_id: int
    width: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.from_iterable(text.columns for text in self.texts)))

    @property
    def bindings(self) -> Mapping[str, tuple[str, ...]]:
        names = ("text", "text_pair")[: len(self.texts)]
        return {name: text.columns for name, text in zip(names, self.texts, strict=True)}

    def prepare(self, columns: pa.RecordBatch) -> Prepared:
        """Tokenizes without padding. Faults: missing_value, bad_type, invalid_utf8, too_long,
        inference_failed (the tokenizer cannot express the text)."""
        faults: dict[int, Fault] = {}
        strings = {name: _strings(name, columns.column(name), faults) for name in self.columns}
        rendered = [_render(text, strings) for text in self.texts]
        good = np.ones(columns.num_rows, np.bool_)
        good[list(faults)] = False
        rows = np.flatnonzero(good)
        wanted = [text.take(pa.array(rows)).to_pylist() for text in rendered]
        texts: Sequence[Any] = wanted[0] if len(wanted) == 1 else list(zip(*wanted, strict=True))
        first = first_seen(rows, texts, len(good))
        own = first[rows] == rows
        tokens, truncated = self._tokenize(list(compress(texts, own)), rows[own], len(good), faults)
        lengths = np.diff(tokens.offsets)
        self._check_lengths(rows[own], lengths, faults)
        for row in np.flatnonzero(good & (first != np.arange(len(good)))).tolist():
            if (fault := faults.get(int(first[row]))) is not None:
                faults[row] = replace(fault, index=row)
        # Different texts may have the same tokens: cut to the same length, or but for their case.
        alike = first_seen(rows[own], tokens.rows(rows[own]), len(good))
        ordered = tuple(faults[row] for row in sorted(faults))
        return Prepared(
            columns.num_rows,
            self._padded(lengths),
            ordered,
            tokens,
            alike[first],
            int(truncated[first][good].sum()),
            tokens=lengths,
        )

    def _check_lengths(
        self, rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], faults: dict[int, Fault]
    ) -> None:
        for row in rows[lengths[rows] == 0].tolist():
            faults.setdefault(row, Fault(row, "missing_value", "the text holds no token"))
        if not self.truncate and self.max_length is not None:
            for row in np.flatnonzero(lengths > self.max_length).tolist():
                message = f"{lengths[row]} tokens, the model takes {self.max_length}"
                faults.setdefault(row, Fault(row, "too_long", message))

    def _padded(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The width each row is fed with: its tokens, rounded up by at most a sixteenth.

        Softmax and sums over a row add up in an order that depends on the width, so the width
        must follow from the row alone and not from the longest row of its batch. Rounding up
        lets more rows share a batch.
        """
        if self.width is not None:
            return np.full(len(lengths), self.width, np.int64)
        if self.max_length is None:  # the graph may take no token more than the row has
            return lengths
        step = 2 ** np.maximum(np.log2(np.maximum(lengths, 1)).astype(np.int64) - 4, 0)
        rounded = -(-lengths // step) * step
        return np.where(lengths > self.max_length, lengths, np.minimum(rounded, self.max_length))

    def _tokenize(
        self,
        texts: Sequence[Any],
        rows: npt.NDArray[np.int64],
        total: int,
        faults: dict[int, Fault],
    ) -> tuple[_Tokens, npt.NDArray[np.bool_]]:
        """Tokens of the texts of `rows`, of `total`; and which of them were truncated.

        Raises ConfigInvalid where the tokenizer gives ids that no model takes.
        """
        typed = any(tensor.name == "token_type_ids" for tensor in self.inputs)
        lengths = np.zeros(total, np.int64)
        ids: list[npt.NDArray[np.int32]] = []
        types: list[npt.NDArray[np.int8]] = []
        truncated = np.zeros(total, np.bool_)
        for start in range(0, len(texts), _CHUNK_ROWS):
            places = rows[start : start + _CHUNK_ROWS]
            chunk = list(self._encoded(texts[start : start + _CHUNK_ROWS], places, faults))
            for row, encoding in zip(places.tolist(), chunk, strict=True):
                lengths[row] = 0 if encoding is None else len(encoding)
                truncated[row] = bool(
                    encoding and lengths[row] == self.max_length and encoding.overflowing
                )
            whole = [encoding for encoding in chunk if encoding is not None]
            chunk_ids, chunk_types = _flat(whole, typed)
            ids.append(chunk_ids)
            types.append(chunk_types)
        tokens = _Tokens(
            np.concatenate([np.empty(0, np.int32), *ids]),
            np.concatenate([np.empty(0, np.int8), *types]) if typed else None,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        )
        return tokens, truncated

    def _encoded(
        self, texts: Sequence[Any], rows: npt.NDArray[np.int64], faults: dict[int, Fault]
    ) -> Iterator[Encoding | None]:
        """One encoding per text, None for a text the tokenizer cannot express."""
        try:
            with _panics():
                encodings = self.tokenizer.encode_batch_fast(texts)
            yield from encodings
            return
        except Exception as error:  # noqa: BLE001 - tokenizers raises Exception itself
            if len(texts) == 1:
                row = int(rows[0])
                message = f"the tokenizer fails on this text: {' '.join(str(error).split())}"
                faults[row] = Fault(row, "inference_failed", message)
                yield None
                return
        for index, text in enumerate(texts):
            yield from self._encoded([text], rows[index:], faults)

    def feeds(self, prepared: Prepared, indices: npt.NDArray[np.int64]) -> Feeds:
        """[rows, tokens] arrays, padded on the right to the widest of these rows."""
        tokens: _Tokens = prepared.payload
        starts = tokens.offsets[indices]
        lengths = tokens.offsets[indices + 1] - starts
        widths = self._padded(lengths)
        places = np.arange(int(widths.max(initial=1)))
        real = places < lengths[:, None]
        source = (starts[:, None] + places)[real]
        feeds: Feeds = {}
        for tensor in self.inputs:
            array = np.zeros(real.shape, tensor.dtype)
            if tensor.name == "input_ids":
                array.fill(self.pad_id)
                array[real] = tokens.ids[source]
            elif tensor.name == "attention_mask":
                array[real] = 1
            elif tensor.name == "position_ids":
                array[:] = places
            elif tokens.type_ids is not None:
                array[real] = tokens.type_ids[source]
            feeds[tensor.name] = array
        return feeds

    def measured(
        self,
        prepared: Prepared,
        indices: npt.NDArray[np.int64],
        most: int,  # noqa: ARG002 - there is but one
    ) -> Measured:
        """Tokens of each row, special ones counted, padding not."""
        lengths = np.diff(prepared.payload.offsets)[prepared.first[indices]]
        return Measured({"tokens": "tokens"}, lengths[None].astype(np.float32))


@contextmanager
def _panics() -> Iterator[None]:
    """A panic of the tokenizers library, which is no Exception, as one."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the tokenizers library has panicked: {error}") from error


def _flat(
    encodings: Sequence[Encoding], typed: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Ids and, where they are wanted, type ids of all, one after the other."""
    count = sum(map(len, encodings))
    types = chain.from_iterable(e.type_ids for e in encodings) if typed else ()
    try:
        return (
            np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, count),
            np.fromiter(types, np.int8, count if typed else 0),
        )
    except OverflowError as error:
        raise ConfigInvalid(
            f"tokenizer.json: gives token ids beyond {_MOST_ID} or types beyond {_MOST_TYPE}, which"
            " no model takes; copy the one the model was trained with"
        ) from error


def _strings(name: str, column: pa.Array, faults: dict[int, Fault]) -> pa.Array:
    """The column as `string` with nulls where a fault was found."""
    column = plain(column)
    bad: npt.NDArray[np.bool_] | None = None
    texts = column
    if is_json(column.type):
        values = json_values(column)
        texts = values.texts
        bad = ~values.is_string & flags(texts.is_valid())
        for row in np.flatnonzero(bad).tolist():
            message = f"column {name!r}: the JSON value {texts[row].as_py()[:40]} is no string"
            faults.setdefault(row, Fault(row, "bad_type", message))
        for row in np.flatnonzero(values.is_broken).tolist():
            message = f"column {name!r}: a lone surrogate is not Unicode text"
            faults.setdefault(row, Fault(row, "invalid_utf8", message))
    elif pa.types.is_null(column.type):
        texts = column.cast(pa.string())
    elif not is_text(column.type):
        for row in range(len(column)):
            message = f"column {name!r}: {column.type} is not a text"
            faults.setdefault(row, Fault(row, "bad_type", message))
        return pa.nulls(len(column), pa.string())
    if texts.null_count:
        for row in np.flatnonzero(flags(texts.is_null())).tolist():
            message = f"column {name!r} has no value"
            faults.setdefault(row, Fault(row, "missing_value", message))
    return texts


def _render(text: Template, strings: Mapping[str, pa.Array]) -> pa.Array:
    """The template filled in, `string`; null where a column is."""
    if text.parts == (("", text.columns[0]),):
        return strings[text.columns[0]]
    parts: list[Any] = []
    for literal, column in text.parts:
        if literal:
            parts.append(literal)
        if column is not None:
            parts.append(strings[column])
    return pc.binary_join_element_wise(*parts, "")


def open_text_encoder(
    package: ModelPackage, session: Session, texts: tuple[Template, ...]
) -> TextEncoder:
    """The encoder of a graph that has `input_ids`. Raises ConfigInvalid."""
    stored = _tokenizer(package, session)
    tokenizer = stored.tokenizer
    _check_inputs(package, session)
    max_length = package.max_length
    if max_length is None and stored.truncation is not None:
        stated = stored.truncation["max_length"]
        max_length = stated if 0 < stated < NO_LENGTH else None
    pad_id = _pad_id(package, stored)
    shapes = [tensor.shape for tensor in session.inputs if tensor.name == "input_ids"]
    fixed = shapes[0][1] if len(shapes[0]) == 2 else None
    width = fixed if isinstance(fixed, int) else None
    if width is not None:
        max_length = min(width, max_length or width)
    special = tokenizer.num_special_tokens_to_add(len(texts) == 2)
    if max_length is not None and max_length <= special:
        raise ConfigInvalid(
            f"{package.directory}: at most {max_length} tokens leave no room for text beside"
            f" {special} special tokens; set max_length in batchpredict.toml"
        )
    if max_length is not None and package.manifest.truncate:
        tokenizer.enable_truncation(max_length, strategy="longest_first")
    encoder = TextEncoder(
        session.inputs, tokenizer, texts, max_length, package.manifest.truncate, pad_id, width
    )
    _check_vocabulary(package, session, encoder)
    return encoder


@dataclass(frozen=True)
class _Stored:
    """A tokenizer, and what its file says of padding and truncation, which it does not apply."""

    tokenizer: Tokenizer
    padding: Mapping[str, Any] | None
    truncation: Mapping[str, Any] | None


def _tokenizer(package: ModelPackage, session: Session) -> _Stored:
    if package.tokenizer is None:
        raise ConfigInvalid(
            f"{session.graph}: takes token ids (input_ids), and {package.directory} has no"
            " tokenizer.json; save the model's fast tokenizer there (save_pretrained)"
        )
    return _read_tokenizer(package.tokenizer, package.digest)


# A large vocabulary takes a second to read; every input of a job asks for the same one.
@lru_cache(maxsize=1)
def _read_tokenizer(path: Path, digest: str) -> _Stored:  # noqa: ARG001 - the file's content
    try:
        with _panics():
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        what = " ".join(str(error).split())
        raise ConfigInvalid(f"{path}: not a tokenizer: {what}") from error
    stored = _Stored(tokenizer, tokenizer.padding, tokenizer.truncation)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return stored


def _check_inputs(package: ModelPackage, session: Session) -> None:
    names = [tensor.name for tensor in session.inputs]
    if "attention_mask" not in names and package.pad_id is None:
        raise ConfigInvalid(
            f"{session.graph}: has no attention_mask, so that padding would change scores; export"
            " it with one, or state pad_token_id in config.json if the graph masks it itself"
        )
    for tensor in session.inputs:
        if tensor.name not in TOKEN_INPUTS:
            raise ConfigInvalid(
                f"{session.graph}: beside token ids it wants the input {tensor.name}"
                f" ({tensor.dtype}), which no text gives; export it for the task alone"
            )
        if tensor.dtype not in ("int32", "int64") or len(tensor.shape) not in (0, 2):
            raise ConfigInvalid(
                f"{session.graph}: input {tensor.name} is {tensor.dtype} {list(tensor.shape)},"
                " not int32 or int64 [rows, tokens]"
            )


def _pad_id(package: ModelPackage, stored: _Stored) -> int:
    """As config.json says, else the tokenizer's files; masked, so that 0 does where none says."""
    tokenizer = stored.tokenizer
    known = [package.pad_id, tokenizer.token_to_id(package.pad_token or "")]
    if stored.padding is not None:
        known.append(stored.padding["pad_id"])
    known += [tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("<pad>")]
    return next((pad for pad in known if pad is not None and 0 <= pad <= _MOST_ID), 0)


def _check_vocabulary(package: ModelPackage, session: Session, encoder: TextEncoder) -> None:
    """The tokenizer must not give ids beyond the graph's embeddings.

    config.json may state their number; if it does not or is wrong, the graph itself is asked by
    running the highest id. A graph that fails on ordinary ids too has another trouble, which
    its rows will tell.
    """
    size = encoder.tokenizer.get_vocab_size(with_added_tokens=True)
    stated = package.vocab_size
    what = f"{package.tokenizer}: the tokenizer's vocabulary does not fit the graph"
    how = "copy the tokenizer the model was trained with"
    if stated is not None and stated < size:
        highest = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values())
        if highest >= stated:
            raise ConfigInvalid(
                f"{what}: token ids up to {highest}, config.json has vocab_size {stated}; {how}"
            )
    usual = encoder.prepare(_probe(encoder))
    if usual.faults or size < 1:
        return
    ids = usual.payload.ids.copy()
    ids[0] = size - 1
    probe = replace(usual, payload=replace(usual.payload, ids=ids))
    if not _fails(session, encoder, probe):
        return
    if not _fails(session, encoder, usual):
        raise ConfigInvalid(f"{what}: token id {size - 1} is beyond its embeddings; {how}")


def _probe(encoder: TextEncoder) -> pa.RecordBatch:
    names = encoder.columns
    return pa.record_batch([pa.array(["a"])] * len(names), names=list(names))


def _fails(session: Session, encoder: TextEncoder, prepared: Prepared) -> bool:
    try:
        session.run([session.outputs[0].name], encoder.feeds(prepared, np.zeros(1, np.int64)))
    except InferenceFailed:
        return True
    return False
