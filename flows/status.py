"""`thaw status`: what goes on, how far it is, how long still, what waits, and what failed last."""

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import quiet_prefect
from flows.output import AsJson, print_json

if TYPE_CHECKING:
    from rich.console import Console

SILENT = 60  # seconds without a word, from which on it is told
MOST = 5  # of what was left that are told


def status(
    folder: Annotated[
        Path | None, typer.Argument(help="A run's folder, or that of a build; by default the whole project.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what goes on in this project: sweeps, runs, servers; how far it is, how long still, what failed last.

    It makes nothing, and works while MLflow or Prefect are down.

    [dim]thaw status
    thaw status runs/mine      one training run
    thaw status --json[/dim]
    """
    quiet_prefect()
    from rich.console import Console

    from tasks.status import status as look
    from tasks.workspace import project_root

    found = look(project_root(), folder)
    if as_json:
        print_json(found)
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for row in (row for row in found["work"] if row["state"] == "running"):
        _show(console, row)
    if run := found.get("run"):
        _show_run(console, folder, run)
    if not any(row["state"] == "running" for row in found["work"]):
        console.print("nothing runs" if folder is None else f"nobody is known to be at work on {folder}")
    for row in [row for row in found["work"] if row["state"] != "running"][:MOST]:
        _show_left(console, row)
    if failure := found["last_failure"]:
        log = f"; its log: {failure['log']}" if failure["log"] else ""
        console.print(f"failed last, {_ago(failure['at'])}: {failure['what']}: {failure['why']}{log}")
    if found["prefect"]:
        _show_prefect(console, found["prefect"])


def _show(console: "Console", row: dict[str, Any]) -> None:
    from components.outlook import span

    console.print(f"{row['what']}: {row['summary']}" if row["summary"] else row["what"], style="bold")
    silent = time.time() - row["told"]
    heard = f", silent for {span(silent)}" if silent > SILENT and row["part"] else ""
    console.print(
        f"  {row['host']}, process {row['pid']}, for {span(time.time() - row['began'])}{heard}, in {row['folder']}"
    )
    states: dict[str, list[str]] = {}
    for name, stage in row["stages"].items():
        states.setdefault(stage["state"], []).append(name)
        if stage["state"] == "running":
            process = f" (process {stage['pid']})" if "pid" in stage else ""
            console.print(f"  running     {name}: {stage.get('summary') or 'starting'}{process}")
    for state in ("waiting", "paused", "failed", "built", "up to date"):
        if state in states:
            console.print(f"  {state:<10}  {', '.join(states[state])}")


def _show_left(console: "Console", row: dict[str, Any]) -> None:
    why = f" ({row['ended']})" if row["state"] == "failed" else ""
    far = f" at {row['summary']}" if row["summary"] else ""
    cure = f"; `{row['command']}` goes on" if row["command"] else ""
    console.print(f"{row['what']}: {row['state']} {_ago(row['told'])}{why}{far}{cure}")


def _show_run(console: "Console", folder: Path | None, run: dict[str, Any]) -> None:
    best = f"; best by validation step {run['best_step']}, {run['validation']:.1%}" if run["best_step"] else ""
    word = {"ended": "trained", "stopped": "stopped", "running": "running; last checkpoint"}[run["state"]]
    console.print(f"{folder}: {word} at step {run['step']} of {run['steps']}{best}")


def _show_prefect(console: "Console", prefect: dict[str, Any]) -> None:
    if prefect["trouble"]:
        console.print(f"Prefect's flow runs are not known: {prefect['trouble']}")
        return
    console.print(f"Prefect at {prefect['url']}: {'' if prefect['runs'] else 'no flow run goes on or waits'}")
    planned: set[str] = set()
    for run in prefect["runs"]:
        if run["state"] == "scheduled":
            if run["flow"] in planned:
                continue  # a schedule has weeks of them
            planned.add(run["flow"])
        at = datetime.fromisoformat(run["at"]).astimezone()
        message = f": {run['message']}" if run["state"] in ("failed", "crashed") else ""
        console.print(f"  {run['state']:<10}  {run['flow']} {run['name']}, {at:%Y-%m-%d %H:%M}{message}")


def _ago(moment: float) -> str:
    from components.outlook import span

    return f"{span(max(0.0, time.time() - moment))} ago"
