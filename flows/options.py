"""The options that several commands share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Params = Annotated[Path, typer.Option("--params", help="The settings file.", show_default=True)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one setting; may be repeated.")
]
Data = Annotated[Path | None, typer.Option("--data", help="The folder `thaw prepare` wrote; made where it is missing.")]
Base = Annotated[Path | None, typer.Option("--base", help="The base model's folder; made where it is missing.")]
TestData = Annotated[
    Path | None, typer.Option("--data", help="A folder `thaw prepare` wrote, or a raw file; build/data otherwise.")
]

PROJECT = Path(__file__).parents[1]  # where Thaw itself lies, with the settings and the pipeline that it came with
PARAMS = Path("params.yaml")
BUILD = Path("build")


def repeated(params: Path, overrides: Sequence[str] | None) -> list[str]:
    """The options by which another process of the same command gets the same settings."""
    return ["--params", str(params), *(part for override in overrides or [] for part in ("--set", override))]


def quiet_prefect() -> None:
    """Before Prefect is imported: lines that name the step and what it says, and nothing sent anywhere."""
    line = "%(asctime)s | {} | %(message)s"
    for name, value in {
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": line.format("%(flow_name)s"),
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": line.format("%(task_run_name)s"),
        "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
