"""A model directory, read once into a frozen ModelPackage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchpredict.errors import ConfigInvalid, Unavailable
from batchpredict.model.files import check_member
from batchpredict.model.graph_file import GraphFile, read_graph_file
from batchpredict.model.manifest import FILE_NAME, Manifest, read_manifest, shown

# Files beside the graph that shape predictions, as Hugging Face's and our own tools write them.
COMPANIONS = (
    FILE_NAME,
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Bytes of a file. A graph is one message, which protocol buffers limit; what is read by Python
# takes two seconds a MiB (TOML), or 25 times its size (JSON); a tokenizer takes 20 times.
_MOST_GRAPH = 2**31 - 1
_MOST_BYTES = {FILE_NAME: 2 << 20, "tokenizer.json": 128 << 20}
_MOST_JSON = 16 << 20
# Their position 0 and 1 are taken: positions are counted from pad_token_id + 1
# (create_position_ids_from_input_ids in transformers).
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "roberta", "roberta-prelayernorm", "xlm-roberta",
     "xlm-roberta-xl", "xmod"}
)  # fmt: skip
# tokenizer_config.json says 1e30 (int(1e30) in transformers) where no length is known.
NO_LENGTH = 10**6


@dataclass(frozen=True)
class ModelPackage:
    """Everything the files of a model say. Picklable; holds no weights.

    `directory`: where the files are, absolute. `graph`: the .onnx file, relative to it.
    `files`: (relative path, size, sha256) of every file the model reads, sorted by path.
    `digest`: sha256 over the lines `<sha256>  <path>\\n` in that order, which is what
    `sha256sum FILES… | LC_ALL=C sort -k2 | sha256sum` prints in the directory.
    `labels`, `problem_type`, `pad_id`, `pad_token`, `vocab_size`, `max_length`: None where no
    file says. `max_length`: tokens of a row with its special tokens. `tokenizer`: absolute path.
    `prompt`: what sentence-transformers puts before a text by default. `heads`: of a layer's
    attention, None where the configuration does not say.
    """

    name: str
    version: str | None
    directory: Path
    graph: str
    files: tuple[tuple[str, int, str], ...]
    digest: str
    labels: tuple[str, ...] | None
    problem_type: str | None
    pad_id: int | None
    pad_token: str | None
    vocab_size: int | None
    max_length: int | None
    tokenizer: Path | None
    prompt: str
    heads: int | None
    manifest: Manifest
    graph_file: GraphFile

    @property
    def graph_path(self) -> Path:
        return self.directory / self.graph


def read_package(path: str | Path) -> ModelPackage:
    """A directory (`model.onnx`, else its only .onnx, else the same in `onnx/`) or an .onnx file.

    A file is read with the companions beside it, so that one of several graphs of a directory
    can be named. Raises Unavailable (missing, not permitted), ConfigInvalid (what is wrong).
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for unknown users
    directory, graph = _locate(path)
    check_member(directory, graph, _MOST_GRAPH)
    # Whatever has the name, if only a link to nothing: leaving it out would change the scores.
    present = [name for name in COMPANIONS if os.path.lexists(directory / name)]
    for name in present:
        check_member(directory, name, _MOST_BYTES.get(name, _MOST_JSON))
    config = _Config(directory, present)
    graph_file = read_graph_file(directory / graph)
    manifest = read_manifest(directory / FILE_NAME) if FILE_NAME in present else Manifest()
    files = _files(directory, graph, present, graph_file)
    lines = "".join(f"{sha256}  {name}\n" for name, _, sha256 in files)
    stem = Path(graph).stem
    return ModelPackage(
        name=manifest.name or (stem if path.is_file() and stem != "model" else directory.name),
        version=manifest.version,
        directory=directory,
        graph=graph,
        files=files,
        digest=hashlib.sha256(lines.encode()).hexdigest(),
        labels=manifest.labels or config.labels(),
        problem_type=config.text("config.json", "problem_type"),
        pad_id=config.whole("config.json", "pad_token_id"),
        pad_token=config.pad_token(),
        vocab_size=config.whole("config.json", "vocab_size"),
        max_length=manifest.max_length or config.max_length(),
        tokenizer=directory / "tokenizer.json" if "tokenizer.json" in present else None,
        prompt=config.prompt(),
        heads=config.heads(),
        manifest=manifest,
        graph_file=graph_file,
    )


def _locate(path: Path) -> tuple[Path, str]:
    try:
        absolute = Path(os.path.realpath(path, strict=True))
        if absolute.is_dir():
            return absolute, _graph_in(absolute, path)
        # Not resolved further: in a Hugging Face cache the file is a link to a nameless blob.
        directory = Path(os.path.realpath(path.parent, strict=True))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise Unavailable(
            f"--model={path}: {reason}; name a .onnx file or a model directory"
        ) from error
    if directory.name == "onnx" and not any(
        os.path.lexists(directory / name) for name in COMPANIONS
    ):
        return directory.parent, f"onnx/{path.name}"
    return directory, path.name


def _graph_in(directory: Path, given: Path) -> str:
    for folder in ("", "onnx/"):
        inside = directory / folder
        if not inside.is_dir():
            continue
        graphs = sorted(p.name for p in inside.iterdir() if p.suffix == ".onnx" and not p.is_dir())
        if "model.onnx" in graphs:
            return f"{folder}model.onnx"
        if len(graphs) == 1:
            return folder + graphs[0]
        if graphs:
            names = ", ".join(folder + name for name in graphs)
            raise ConfigInvalid(
                f"{given}: several graphs and none is model.onnx ({names});"
                f" name one, as in --model {given / folder / graphs[0]}"
            )
    raise ConfigInvalid(f"{given}: no .onnx file in this directory; export the model into it")


def _files(
    directory: Path, graph: str, present: list[str], graph_file: GraphFile
) -> tuple[tuple[str, int, str], ...]:
    names = [graph, *present]
    folder = Path(graph).parent
    for location in graph_file.external:
        name = (folder / location).as_posix()
        if not os.path.lexists(directory / name):
            raise ConfigInvalid(
                f"{directory / graph}: its weights are in {shown(location)}, which is not"
                f" there; copy it to {directory / name}"
            )
        check_member(directory, name, None)
        names.append(name)
    return tuple((name, *_size_and_sha256(directory / name)) for name in sorted(set(names)))


def _size_and_sha256(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


class _Config:
    """The JSON files of a Hugging Face export; a key that is absent or null is None."""

    def __init__(self, directory: Path, present: list[str]) -> None:
        self.directory = directory
        self.documents: dict[str, Mapping[str, Any]] = {
            # tokenizer.json is the tokenizers library's own and up to 20 MB.
            name: self.read(name)
            for name in present
            if name.endswith(".json") and name != "tokenizer.json"
        }

    def read(self, name: str) -> Mapping[str, Any]:
        path = self.directory / name
        try:
            document = json.loads(path.read_bytes())
            json.dumps(document, ensure_ascii=False).encode()  # no lone surrogates in any name
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ConfigInvalid(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise ConfigInvalid(f"{path}: not JSON: {reason}") from error
        if not isinstance(document, dict):
            raise ConfigInvalid(f"{path}: must hold a JSON object")
        return document

    def error(self, name: str, key: str, what: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self.directory / name}: {key}: {what}")

    def get(self, name: str, key: str) -> Any:
        return self.documents.get(name, {}).get(key)

    def text(self, name: str, key: str) -> str | None:
        value = self.get(name, key)
        if value is not None and not isinstance(value, str):
            raise self.error(name, key, f"must be a text, not {shown(value)}")
        return value

    def whole(self, name: str, key: str) -> int | None:
        value = self.get(name, key)
        if type(value) is float and value.is_integer():
            return int(value)
        if value is not None and type(value) is not int:
            raise self.error(name, key, f"must be a whole number, not {shown(value)}")
        return value

    def labels(self) -> tuple[str, ...] | None:
        mapping = self.get("config.json", "id2label")
        if mapping is None:
            return None
        try:
            by_id = {int(key): str(label) for key, label in mapping.items()}
            labels = tuple(by_id[index] for index in range(len(by_id)))
        except (AttributeError, KeyError, ValueError, RecursionError) as error:
            what = "must map 0, 1, 2 … to labels without gaps"
            raise self.error("config.json", "id2label", what) from error
        if len(set(labels)) < len(labels):
            what = f"two labels are the same: {shown(list(labels))}"
            raise self.error("config.json", "id2label", what)
        # transformers writes one or two placeholder labels for models that classify nothing.
        return labels or None

    def pad_token(self) -> str | None:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            value = self.get(name, "pad_token")
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                return content
        return None

    def max_length(self) -> int | None:
        positions = self.whole("config.json", "max_position_embeddings")
        if positions and self.text("config.json", "model_type") in _OFFSET_POSITIONS:
            positions -= 2
        stated = (
            self.whole("tokenizer_config.json", "model_max_length"),
            self.whole("sentence_bert_config.json", "max_seq_length"),
            positions,
        )
        lengths = [length for length in stated if length and 0 < length < NO_LENGTH]
        return min(lengths, default=None)

    def heads(self) -> int | None:
        stated = (self.whole("config.json", name) for name in ("num_attention_heads", "n_heads"))
        return next((count for count in stated if count and count > 0), None)

    def prompt(self) -> str:
        name = "config_sentence_transformers.json"
        default = self.text(name, "default_prompt_name")
        if default is None:
            return ""
        prompts = self.get(name, "prompts")
        if not isinstance(prompts, dict) or not isinstance(prompts.get(default), str):
            raise self.error(
                name, "default_prompt_name", f"{shown(default)} is not among `prompts`"
            )
        return str(prompts[default])
