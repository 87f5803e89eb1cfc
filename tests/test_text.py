"""Text to token ids: against the tokenizer itself, padding, faults, binding, two real models."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from batchpredict.errors import BatchPredictError, ConfigInvalid, InputInvalid, UsageError
from batchpredict.model.binding import bind
from batchpredict.model.contracts import Encoder
from batchpredict.model.outputs import HeadOptions, resolve_head
from batchpredict.model.package import read_package
from batchpredict.model.session import open_session
from tests import models

OFFERED = pa.schema([("id", pa.string()), ("text", pa.string())])
SHARED = Path(os.environ.get("BATCHPREDICT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def encoder(
    directory: Path,
    offered: pa.Schema = OFFERED,
    *,
    complete: bool = True,
    **column: Any,
) -> Encoder:
    package = read_package(directory)
    return bind(package, open_session(package), offered, complete, column)


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.record_batch(
        {
            name: values if isinstance(values, pa.Array) else pa.array(values, pa.string())
            for name, values in columns.items()
        }
    )


def json_column(*values: str | None) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(values, pa.string()))


def everything(made: Encoder, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
    return made.feeds(made.prepare(rows), np.arange(rows.num_rows))


def test_ids_mask_and_padding(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path))
    prepared = made.prepare(batch(text=["good", "so very bad", ""]))

    assert made.columns == ("text",)
    assert made.bindings == {"text": ("text",)}
    assert prepared.rows == 3
    assert prepared.lengths is not None
    assert prepared.lengths.dtype == np.int64
    assert prepared.lengths.tolist() == [3, 5, 2]
    assert prepared.faults == ()
    feeds = made.feeds(prepared, np.array([1, 0, 1]))
    so, very, bad, good = (models.VOCABULARY[word] for word in ("so", "very", "bad", "good"))
    long = [models.CLS, so, very, bad, models.SEP]
    short = [models.CLS, good, models.SEP, models.PAD, models.PAD]
    assert feeds["input_ids"].tolist() == [long, short, long]
    assert feeds["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1] * 5]
    for array in feeds.values():
        assert array.dtype == np.int64
        assert array.flags.c_contiguous


def test_a_batch_is_as_wide_as_its_longest_row(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path))
    prepared = made.prepare(batch(text=["good", "so so so so so so", "bad"]))
    assert made.feeds(prepared, np.array([0, 2]))["input_ids"].shape == (2, 3)


def test_every_input_a_graph_may_have(tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    graph = models.text_graph(inputs=names, dtype="int32")
    offered = pa.schema([("text", pa.string()), ("text_pair", pa.string())])
    made = encoder(models.write_text_model(tmp_path, graph), offered)
    assert made.bindings == {"text": ("text",), "text_pair": ("text_pair",)}

    feeds = everything(made, batch(text=["good", "so"], text_pair=["bad bad", "bad"]))

    assert list(feeds) == list(names)
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int32)}
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert feeds["position_ids"].tolist() == [list(range(6))] * 2


def test_padding_stored_in_the_tokenizer_is_not_applied(tmp_path: Path) -> None:
    tokens = models.tokenizer()
    tokens.enable_padding(length=50, pad_id=models.PAD)
    made = encoder(models.write_text_model(tmp_path, tokens=tokens))
    assert everything(made, batch(text=["good"]))["input_ids"].shape == (1, 3)


def test_pad_id_comes_from_config_then_from_the_tokens(tmp_path: Path) -> None:
    def padded(directory: Path) -> int:
        feeds = everything(encoder(directory), batch(text=["so so", "so"]))
        return int(feeds["input_ids"][1, -1])

    config = {"pad_token_id": 5}
    assert padded(models.write_text_model(tmp_path / "config", config=config)) == 5
    words = {"pad_token": "[SEP]"}
    named = models.write_text_model(tmp_path / "map", config=None, special_tokens_map=words)
    assert padded(named) == models.SEP
    content = {"pad_token": {"content": "[CLS]"}}
    named = models.write_text_model(tmp_path / "object", config=None, tokenizer_config=content)
    assert padded(named) == models.CLS
    assert padded(models.write_text_model(tmp_path / "nothing", config=None)) == models.PAD


def test_long_rows_are_cut_and_counted(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path, tokenizer_config={"model_max_length": 4}))
    prepared = made.prepare(batch(text=["good bad", "good bad so", "good", "so " * 2000]))
    assert prepared.lengths is not None
    assert prepared.lengths.tolist() == [4, 4, 3, 4]
    assert prepared.truncated == 2
    ids = made.feeds(prepared, np.array([1]))["input_ids"]
    good, bad = models.VOCABULARY["good"], models.VOCABULARY["bad"]
    assert ids.tolist() == [[models.CLS, good, bad, models.SEP]]


def test_without_truncation_long_rows_are_faults(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path, manifest="truncate = false\nmax_length = 4")
    prepared = encoder(directory).prepare(batch(text=["good bad", "good bad so"]))
    assert [(fault.index, fault.code) for fault in prepared.faults] == [(1, "too_long")]
    assert "5 tokens" in prepared.faults[0].message
    assert "4" in prepared.faults[0].message
    assert prepared.truncated == 0


def test_truncation_stored_in_the_tokenizer_counts_where_nothing_else_says(tmp_path: Path) -> None:
    tokens = models.tokenizer()
    tokens.enable_truncation(3)
    made = encoder(models.write_text_model(tmp_path, tokens=tokens))
    prepared = made.prepare(batch(text=["so so so"]))
    assert prepared.lengths is not None
    assert prepared.lengths.tolist() == [3]


def test_no_room_for_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="2 special tokens"):
        encoder(models.write_text_model(tmp_path, manifest="max_length = 2"))


def test_a_graph_of_fixed_width(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path, models.text_graph(shape=("batch", 6))))
    feeds = everything(made, batch(text=["so", "so " * 9]))
    assert feeds["input_ids"].shape == (2, 6)
    assert feeds["attention_mask"].sum(axis=1).tolist() == [3, 6]
    assert feeds["input_ids"][1, -1] == models.SEP


# --- rows that cannot be scored


def test_faults_of_strings(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path))
    prepared = made.prepare(batch(text=["so", None, "", "bad"]))
    assert [(fault.index, fault.code) for fault in prepared.faults] == [(1, "missing_value")]
    assert "'text'" in prepared.faults[0].message
    assert made.feeds(prepared, np.array([3]))["input_ids"][0, 1] == models.VOCABULARY["bad"]


def test_faults_of_json_values(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path))
    column = json_column(
        '"so \\"bad\\""', "17", None, "null", '{"a": 1}', '["good"]', "true", '"\\ud800"', '"good"'
    )
    prepared = made.prepare(batch(text=column))
    assert [(fault.index, fault.code) for fault in prepared.faults] == [
        (1, "bad_type"),
        (2, "missing_value"),
        (3, "missing_value"),
        (4, "bad_type"),
        (5, "bad_type"),
        (6, "bad_type"),
        (7, "invalid_utf8"),
    ]
    assert "17" in prepared.faults[0].message
    good = models.VOCABULARY["good"]
    assert made.feeds(prepared, np.array([8]))["input_ids"].tolist() == [
        [models.CLS, good, models.SEP]
    ]


def test_a_column_that_is_all_null_or_of_another_type(tmp_path: Path) -> None:
    made = encoder(models.write_text_model(tmp_path))
    nulls = made.prepare(pa.record_batch({"text": pa.nulls(2)}))
    assert [fault.code for fault in nulls.faults] == ["missing_value"] * 2
    numbers = made.prepare(pa.record_batch({"text": pa.array([1, 2])}))
    assert [fault.code for fault in numbers.faults] == ["bad_type"] * 2


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_every_kind_of_string_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    made = encoder(models.write_text_model(tmp_path), pa.schema([("text", kind)]))
    column = pa.array(["so", None, "good"]).cast(kind)
    prepared = made.prepare(pa.record_batch({"text": column}))
    assert [fault.index for fault in prepared.faults] == [1]


def test_a_text_without_tokens(tmp_path: Path) -> None:
    tokens = models.tokenizer(special=False)
    prepared = encoder(models.write_text_model(tmp_path, tokens=tokens)).prepare(
        batch(text=["so", "", "  "])
    )
    assert [(fault.index, fault.code) for fault in prepared.faults] == [
        (1, "missing_value"),
        (2, "missing_value"),
    ]


def test_a_text_the_tokenizer_cannot_express_costs_that_row(tmp_path: Path) -> None:
    tokens = models.tokenizer(unknown=False)
    made = encoder(models.write_text_model(tmp_path, tokens=tokens))
    rows = ["so" + " " * index for index in range(700)]
    rows[3] = rows[600] = "unheard"
    prepared = made.prepare(batch(text=rows))
    assert [(fault.index, fault.code) for fault in prepared.faults] == [
        (3, "inference_failed"),
        (600, "inference_failed"),
    ]
    good = np.setdiff1d(np.arange(700), [3, 600])
    assert (prepared.first[good] == 0).all()
    ids = made.feeds(prepared, prepared.first[good])["input_ids"]
    assert (ids == [models.CLS, models.VOCABULARY["so"], models.SEP]).all()


@given(st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=20), st.data())
def test_ids_are_those_of_the_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], data: st.DataObject
) -> None:
    directory = tmp_path_factory.getbasetemp() / "agree"
    if not directory.exists():
        models.write_text_model(directory)
    made = encoder(directory)
    prepared = made.prepare(batch(text=texts))
    bad = {fault.index for fault in prepared.faults}
    assert bad == {index for index, text in enumerate(texts) if text is None}
    good = [index for index in range(len(texts)) if index not in bad]
    if not good:
        return
    chosen = data.draw(st.lists(st.sampled_from(good), min_size=1))
    feeds = made.feeds(prepared, prepared.first[chosen])
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for row, index in enumerate(chosen):
        expected = reference.encode(texts[index]).ids
        mask = feeds["attention_mask"][row].astype(bool)
        assert feeds["input_ids"][row][mask].tolist() == expected
        assert mask.sum() == len(expected)
        assert (feeds["input_ids"][row][~mask] == models.PAD).all()


# --- binding


def test_prompts_and_templates(tmp_path: Path) -> None:
    prompt = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    made = encoder(models.write_text_model(tmp_path / "a", config_sentence_transformers=prompt))
    query, colon, so = (models.VOCABULARY[word] for word in ("query", ":", "so"))
    ids = everything(made, batch(text=["so"]))["input_ids"]
    assert ids.tolist() == [[models.CLS, query, colon, so, models.SEP]]

    template = 'text = "{title} : {body} very"\ntext_pair = "{other}"'
    directory = models.write_text_model(tmp_path / "b", manifest=template)
    offered = pa.schema([(name, pa.string()) for name in ("title", "body", "other")])
    made = encoder(directory, offered)
    assert made.bindings == {"text": ("title", "body"), "text_pair": ("other",)}
    rows = batch(title=["good", None, "so"], body=["bad", "so", "so"], other=["so", "so", None])
    prepared = made.prepare(rows)
    assert [fault.index for fault in prepared.faults] == [1, 2]
    words = [
        models.tokenizer().id_to_token(i)
        for i in made.feeds(prepared, np.array([0]))["input_ids"][0]
    ]
    assert " ".join(map(str, words)) == "[CLS] good : bad very [SEP] so [SEP]"


def test_column_binds_other_names(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path)
    offered = pa.schema([("body", pa.string()), ("reply", pa.string())])
    made = encoder(directory, offered, text="body", text_pair="reply")
    assert made.bindings == {"text": ("body",), "text_pair": ("reply",)}

    templated = models.write_text_model(tmp_path / "t", manifest='text = "query : {text}"')
    assert encoder(templated, offered, text="body").columns == ("body",)
    other = models.write_text_model(tmp_path / "u", manifest='text = "query : {review}"')
    assert encoder(other, offered, text="body").columns == ("body",)
    assert encoder(other, offered, review="body").columns == ("body",)


def test_a_text_of_several_columns_is_bound_by_their_names(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path, manifest='text = "{title} {body}"')
    offered = pa.schema([("t", pa.string()), ("b", pa.string())])
    assert encoder(directory, offered, title="t", body="b").columns == ("t", "b")
    with pytest.raises(UsageError, match="made of title, body"):
        encoder(directory, offered, text="t")


@pytest.mark.parametrize(
    ("offered", "column", "error", "parts"),
    [
        (["texts", "id"], {}, InputInvalid, ["'text'", "did you mean 'texts'", "--column text="]),
        (["Text"], {}, InputInvalid, ["did you mean 'Text'", "it has: Text"]),
        (["text"], {"text": "body"}, UsageError, ["--column text=body", "it has: text"]),
        (["text"], {"txt": "text"}, UsageError, ["--column txt", "did you mean 'text'"]),
        (["text"], {"input_ids": "text"}, UsageError, ["--column input_ids"]),
    ],
)
def test_what_cannot_be_bound(
    tmp_path: Path,
    offered: list[str],
    column: dict[str, Any],
    error: type[BatchPredictError],
    parts: list[str],
) -> None:
    directory = models.write_text_model(tmp_path)
    with pytest.raises(error) as caught:
        encoder(directory, pa.schema([(name, pa.string()) for name in offered]), **column)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_typed_column_that_is_no_text(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path)
    with pytest.raises(InputInvalid, match="'text', which is int64"):
        encoder(directory, pa.schema([("text", pa.int64())]))


def test_json_that_was_not_surveyed(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path)
    assert encoder(directory, pa.schema([]), complete=False).columns == ("text",)
    with pytest.raises(InputInvalid):
        encoder(directory, pa.schema([("a", pa.string())]), complete=False)
    with pytest.raises(InputInvalid, match="it has: none"):
        encoder(directory, pa.schema([]))


# --- models that are wrong


def refusal(directory: Path) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        encoder(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    assert "no tokenizer.json" in refusal(models.write(tmp_path, models.text_graph()))


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path)
    (directory / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not a tokenizer" in refusal(directory)


def test_an_input_that_no_text_gives(tmp_path: Path) -> None:
    graph = models.text_graph()
    graph.graph.input.append(models.value("pixel_values", "float32", ("batch", 3)))
    assert "pixel_values (float32)" in refusal(models.write_text_model(tmp_path, graph))


def test_a_fixed_batch(tmp_path: Path) -> None:
    graph = models.text_graph(shape=(1, "tokens"))
    assert "dynamic batch axis" in refusal(models.write_text_model(tmp_path, graph))


def test_padding_without_a_mask(tmp_path: Path) -> None:
    graph = models.text_graph(inputs=("input_ids",))
    assert "no attention_mask" in refusal(models.write_text_model(tmp_path, graph, config={}))


def test_a_vocabulary_that_config_contradicts(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path, config={"vocab_size": 8})
    message = refusal(directory)
    assert "token ids up to 11" in message
    assert "vocab_size 8" in message


def test_a_vocabulary_beyond_the_embeddings(tmp_path: Path) -> None:
    tokens = models.tokenizer([*models.WORDS, "extra"])
    message = refusal(models.write_text_model(tmp_path, tokens=tokens))
    assert "token id 12 is beyond its embeddings" in message
    directory = models.write_text_model(tmp_path / "fits", tokens=models.tokenizer())
    assert encoder(directory).columns == ("text",)


def test_a_graph_that_fails_on_usual_ids_too_is_left_to_its_rows(tmp_path: Path) -> None:
    graph = models.text_graph(table=np.zeros((2, 2), np.float32))
    assert encoder(models.write_text_model(tmp_path, graph)).columns == ("text",)


# --- real models


@pytest.mark.parametrize("name", ["relevance-minilm", "relevance-e5"])
def test_real_models_score_rows_alone_as_expected(name: str) -> None:
    """All their rows, in batches, are scored in test_examples.py."""
    directory = SHARED / "models" / name
    if not directory.is_dir():
        pytest.skip(f"{directory} is not here")
    with (directory / "expected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:10]
    package = read_package(directory)
    session = open_session(package)
    made = bind(package, session, OFFERED, True, {})
    head = resolve_head(package, session, HeadOptions())
    prepared = made.prepare(batch(text=[row["text"] for row in rows]))
    assert prepared.faults == ()
    for index, row in enumerate(rows):
        raw = session.run(head.fetch, made.feeds(prepared, np.array([index])))
        one, faults = head.columns(head.tensors(raw, 1))
        assert faults == ()
        assert one["prediction"][0].as_py() == row["expected_prediction"]
        assert abs(one["score"][0].as_py() - float(row["expected_score"])) < 1e-5
