"""The command `thaw doctor`: what is wrong with an installation, its project and its services."""

from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import FAILED
from flows.options import quiet_prefect
from flows.output import AsJson, aside, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.finding import Finding

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(
    as_json: AsJson = False,
    disk: Annotated[float, typer.Option(metavar="GB", help="Less free disk space is a fault.")] = 2.0,
    memory: Annotated[float, typer.Option(metavar="GB", help="Less free memory is a fault.")] = 1.0,
    port: Annotated[int, typer.Option(help="Of Prefect's UI, as `thaw serve` would use it.")] = 4200,
) -> None:
    """Look for what may keep Thaw from working: packages, PyTorch and GPUs, room, data, git, MLflow, Prefect, DVC.

    Changes nothing. Each finding comes with the command that mends it. Ends with status 1 if there is a fault.
    """
    quiet_prefect()
    from rich.console import Console

    from tasks.doctor import examine
    from tasks.workspace import project_root

    with aside(as_json), Console(stderr=True).status("looking ..."):
        found = dict(examine(project_root(), disk=disk, memory=memory, port=port))
    faults = [name for name, finding in found.items() if finding.status == "fault"]
    if as_json:
        print_json([_row(name, finding) for name, finding in found.items()])
    else:
        console = Console(highlight=False)
        console.print(_table(found))
        console.print(f"\nfaults: {', '.join(faults)}" if faults else "\nno faults", soft_wrap=True)
    if faults:
        raise typer.Exit(FAILED)


def _row(name: str, finding: "Finding") -> dict[str, str]:
    return {"check": name, "status": finding.status.value, "message": finding.message, "cure": finding.cure}


def _table(found: "dict[str, Finding]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("check", "status"):
        table.add_column(heading, no_wrap=True)
    table.add_column("found, and the cure", overflow="fold")
    for name, finding in found.items():
        cure = f"\n[bold]{escape(finding.cure)}[/]" if finding.cure else ""
        table.add_row(name, f"[{STYLES[finding.status]}]{finding.status}[/]", escape(finding.message) + cure)
    return table
