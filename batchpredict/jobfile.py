"""Job files: TOML with any option of `predict`."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from batchpredict.dates import escape
from batchpredict.errors import ConfigInvalid

# Options that name files; dates may be in them.
PATHS = (
    *("input_file", "output_file", "output_dir", "rejects_file", "receipt_file", "model"),
    *("model_store", "baseline", "metrics_dir"),
)
_STORE_VARIABLE, _SERVICES_VARIABLE = "BATCHPREDICT_MODEL_STORE", "VCAP_SERVICES"


def read_job_file(name: str, known: set[str], *, only_known: bool = False) -> dict[str, Any]:
    """Option values by name. Relative paths count from the job file's directory.

    `known`: option names; others are wrong, or, with `only_known`, left out. Raises ConfigInvalid.
    """
    path = Path(name).expanduser()
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{name}: {(error.strerror or '').lower()}; check --job") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{name}: is not TOML: {error}") from error
    values = _normalised(name, values)
    if only_known:
        values = {key: value for key, value in values.items() if key in known}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigInvalid(f"{name}: unknown option {key!r}{advice}")
        values[key] = _value(name, path.parent, key, value)
    if "model" in values:
        model, has_store = str(values["model"]), "model_store" in values
        if not _is_of_store(model, str(path.parent / model), has_store):
            values["model"] = _resolved(path.parent, model)
    return values


def _normalised(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Keys with underscores, as the options are declared."""
    normal: dict[str, Any] = {}
    for key, value in values.items():
        plain = key.replace("-", "_")
        if plain in normal:
            raise ConfigInvalid(f"{name}: {plain} is given twice, as {key} too; keep one")
        normal[plain] = value
    return normal


def _value(name: str, directory: Path, key: str, value: Any) -> Any:
    if key == "column":
        if not isinstance(value, dict) or not all(isinstance(c, str) for c in value.values()):
            raise ConfigInvalid(f'{name}: column must be a table, such as {{ text = "body" }}')
        return tuple(value.items())
    if isinstance(value, dict):
        raise ConfigInvalid(f"{name}: {key} must not be a table")
    if key == "input_file":
        value = value if isinstance(value, list) else [value]
    if key not in PATHS or key == "model":
        return value
    if isinstance(value, list):
        return [_resolved(directory, str(entry)) for entry in value]
    return _resolved(directory, str(value))


def _is_of_store(model: str, path: str, has_store: bool) -> bool:
    """Whether this is the name of a model in a store. `path`: where it is if it is a path."""
    if not model or "/" in model or model.endswith(".onnx") or model[0] in "~.":
        return False
    if has_store or os.environ.get(_STORE_VARIABLE):
        return True
    may_be = "@" in model or "#" in model or bool(os.environ.get(_SERVICES_VARIABLE))
    return may_be and not os.path.lexists(path)


def _resolved(directory: Path, path: str) -> str:
    if path in ("", "-") or "://" in path:  # one that is empty is refused as the option's value
        return path
    return os.path.join(escape(str(directory)), os.path.expanduser(path))  # noqa: PTH111, PTH118


def placed(name: str, value: str, *, has_store: bool) -> str:
    """The value of the option `name` as a job file or another directory's command can have it.

    `has_store`: whether that names a model store.
    """
    if name not in PATHS or (name == "model" and _is_of_store(value, value, has_store)):
        return value
    return absolute(value)


def absolute(path: str) -> str:
    """A name of a file as `placed` gives it."""
    if path == "-" or "://" in path:
        return path
    path = os.path.join(escape(os.getcwd()), os.path.expanduser(path))  # noqa: PTH109, PTH111, PTH118
    return os.path.normpath(path)  # links stay
