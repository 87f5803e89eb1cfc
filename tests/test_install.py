"""What an installation consists of: the requirements, their pins, and the size on disk."""

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[1]
LIMIT_MB = 600
# setuptools ignores a key it does not know, so a slip of the pen would be invisible.
KNOWN_OPTIONS = {"packages", "python_requires", "install_requires"}


def read_config() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return config


def requirements(extra: str | None = None) -> list[Requirement]:
    config = read_config()
    if extra is None:
        text = config["options"]["install_requires"]
    else:
        text = config["options.extras_require"][extra]
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def pins() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[\w.]+", version), f"not an exact pin: {line}"
            assert canonicalize_name(name) not in found, f"pinned twice: {name}"
            found[canonicalize_name(name)] = version
    return found


def closure(roots: list[Requirement]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that the requirements bring along in the running environment."""
    found: dict[str, importlib.metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in roots]
    while waiting:
        requirement, asked_as = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked_as}):
            continue
        name = canonicalize_name(requirement.name)
        distribution = found.setdefault(name, importlib.metadata.distribution(name))
        for extra in ["", *requirement.extras]:
            if (name, extra) not in done:
                done.add((name, extra))
                waiting += [(Requirement(line), extra) for line in distribution.requires or []]
    return found


def size_mb(distributions: dict[str, importlib.metadata.Distribution]) -> float:
    sizes = {}
    for distribution in distributions.values():
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                sizes[path.resolve()] = path.stat().st_size
    return sum(sizes.values()) / 1e6


def test_options_of_setup_cfg_are_known() -> None:
    assert set(read_config()["options"]) == KNOWN_OPTIONS


def test_runtime_requirements_have_lower_bounds() -> None:
    for requirement in requirements():
        assert [bound.operator for bound in requirement.specifier] == [">="], str(requirement)


@pytest.mark.parametrize("extra", [None, "optimize", "openvino", "test", "train"])
def test_every_requirement_is_pinned_within_its_bounds(extra: str | None) -> None:
    for requirement in requirements(extra):
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_everything_that_is_installed_with_them_is_pinned() -> None:
    installed = closure(requirements() + requirements("test"))
    assert {"numpy", "botocore", "pytest", "pluggy"} <= set(installed)
    versions = {name: distribution.version for name, distribution in installed.items()}
    known = pins()
    assert {name: known.get(name) for name in versions} == versions


def test_no_training_tools_in_an_installation_without_extras() -> None:
    assert not {"torch", "onnx", "scikit-learn", "pytest"} & set(closure(requirements()))


def test_size_of_an_installation() -> None:
    size = size_mb(closure(requirements()))
    assert 100 < size < LIMIT_MB  # far less would mean that files were not found


def test_readme_states_the_size() -> None:
    readme = CHECKOUT / "README.md"
    text = " ".join(readme.read_text(encoding="utf-8").split())
    stated = re.search(r"An installation without extras takes about (\d+) MB\.", text)
    assert stated, "the README does not state the size of an installation"
    assert float(stated[1]) == pytest.approx(size_mb(closure(requirements())), rel=0.1)
