"""`thaw team`: a team's servers on one machine, until interrupted."""

import os
from collections.abc import Collection
from pathlib import Path

from tasks.team.run import running
from tasks.workspace import project_root


def serve_team(only: Collection[str] = ()) -> None:
    """Run what infra/compose.yaml describes, without containers; see tasks/team.

    Raises:
        UserError: a server does not start, or there is none of a name in `only`.
    """
    root = project_root()
    state = Path(os.environ.get("THAW_TEAM", root / "team")).resolve()
    os.umask(0o077)  # whatever they write is for their owner alone
    print(f"Starting the servers; what they keep, and their logs, lie in {state} ...", flush=True)
    with running(root, state, only) as team:
        print(f"Running; ctrl-C ends everything. A clone connects with\n\n    source {team.clone}\n", flush=True)
        team.watch()
