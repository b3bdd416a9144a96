"""The model card of a registered version: what the registry's page says of it, in Markdown."""

from collections.abc import Mapping

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from components.tracking.version import WEIGHTS_TAG, Version

DIRTY_TAG = "thaw.git.dirty"
LOCK_TAG = "thaw.dvc_lock_md5"
PROMOTION_TAG = "thaw.promotion"
FIGURES = ("maj_at_", "p_at_", "exact_at_")  # in this order


def card(version: Version) -> str:
    """What a version was trained on, what it scores, and what it was made from; nothing that others decide later."""
    tags = version.tags
    seed, start = tags.get("seed", "?"), tags.get("start", "?")
    about = f"**{version.arm}** on {tags.get('task', '?')} ({start} start), seed {seed}, step {version.step}"
    sources = "\n".join(f"- {name}: `{fact}`" for name, fact in origin(version).items())
    parts = [about, _figures(version.metrics), sources]
    if PROMOTION_TAG in tags:
        parts.append(tags[PROMOTION_TAG])
    return "\n\n".join(part for part in parts if part)


def _figures(metrics: Mapping[str, float]) -> str:
    names = [name for name in metrics if not name.endswith(("_low", "_high"))]
    sets = sorted({name.partition("/")[0] for name in names})
    figures = sorted(
        {name.partition("/")[2] for name in names},
        key=lambda name: next((rank for rank, start in enumerate(FIGURES) if name.startswith(start)), len(FIGURES)),
    )
    if not sets:
        return ""
    rows = [["percent", *(name.replace("_at_", "@") for name in figures)], ["---"] * (len(figures) + 1)]
    rows += [[test_set, *(_figure(metrics, f"{test_set}/{name}") for name in figures)] for test_set in sets]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _figure(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    ends = [metrics.get(name + end) for end in ("_low", "_high")]
    interval = "" if None in ends else " [" + ", ".join(f"{100 * end:.1f}" for end in ends if end is not None) + "]"
    return f"{100 * metrics[name]:.1f}{interval}"


def origin(version: Version) -> dict[str, str]:
    """What a version was made from, by name, as far as it is known."""
    tags = version.tags
    changed = ", with changes that were not committed" if tags.get(DIRTY_TAG) == "true" else ""
    facts = {
        "run": version.run_id,
        "sweep's run": tags.get(MLFLOW_PARENT_RUN_ID),
        "git commit": tags.get(MLFLOW_GIT_COMMIT) and tags[MLFLOW_GIT_COMMIT] + changed,
        "data (md5)": tags.get("data_md5"),
        "dvc.lock (md5)": tags.get(LOCK_TAG),
        "weights (md5)": tags.get(WEIGHTS_TAG),
    }
    return {name: fact for name, fact in facts.items() if fact}
