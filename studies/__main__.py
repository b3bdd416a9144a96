"""`python -m studies [NAME ...]`: run studies, or those named; each leaves result.json and table.md in its folder."""

import argparse
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from components.errors import USER_ERROR, UserError
from components.progress import say
from flows.ending import builds_kept, heed_signals, keeps
from flows.options import quiet_prefect

HERE, PAGE = Path("studies"), Path("build/studies/index.html")


@keeps(builds_kept)
def main(names: Sequence[str]) -> None:
    quiet_prefect()
    from studies.page import write_page
    from studies.picture import write_pictures
    from studies.study import Study, run_study
    from studies.tables import markdown

    folders = [HERE / name for name in names] or sorted(file.parent for file in HERE.glob("*/study.yaml"))
    for folder in folders:
        Study.read(folder)  # all are checked before the first begins
    for folder in folders:
        rows = run_study(folder)
        table = markdown(Study.read(folder), rows)
        (folder / "table.md").write_text(f"{table}\n{_circumstances(folder, rows)}\n", encoding="utf-8")
        write_page(sorted(file.parent for file in HERE.glob("*/study.yaml")), PAGE)
        say(f"{folder}/table.md and {folder}/result.json; each sweep's report: experiments/study-{folder.name}-*/build")
    write_pictures()
    say(f"{PAGE} shows all studies")


def _circumstances(folder: Path, rows: Sequence[dict]) -> str:
    hours = sum(row["seconds"] or 0 for row in rows) / 3600
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    code = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return (
        f"`python -m studies {folder.name}`, {datetime.now(UTC):%-d %B %Y}, {psutil.cpu_count()} CPU cores"
        f" ({platform.machine()}), {versions}, code {code.stdout.strip() or 'unknown'}:"
        f" {hours:.1f} hours of training on one core each."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a folder of studies/; all of them without")
    names = parser.parse_args().names
    heed_signals()
    try:
        main(names)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
