"""A registered checkpoint as MLflow describes it: a number, tags, aliases, and figures that it keeps among the tags."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

STEP_TAG = "thaw.step"
METRIC_TAG = "metric."  # a version has no metrics of its own
WEIGHTS_TAG = "thaw.weights_md5"


@dataclass(frozen=True)
class Version:
    """One registered checkpoint.

    run_id, step: where it was made; empty and None for a version that was registered by other means.
    created: in UTC.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    run_id: str
    step: int | None
    created: datetime

    @property
    def reference(self) -> str:
        """NAME/VERSION, as every command takes it."""
        return f"{self.name}/{self.version}"

    @property
    def arm(self) -> str:
        """The arm it was trained as, by its name; `?` where its tags do not say."""
        q = self.tags.get("q", "none")
        return self.tags.get("estimator", "?") + ("" if q == "none" else f"-q{q}")


def version_of(item: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """aliases: those of the whole registered model, each with the number it stands for."""
    tags = {key: value for key, value in item.tags.items() if not key.startswith(METRIC_TAG)}
    figures = {key: float(value) for key, value in item.tags.items() if key.startswith(METRIC_TAG)}
    return Version(
        name=item.name,
        version=int(item.version),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if int(version) == int(item.version))),
        tags=tags,
        metrics={key.removeprefix(METRIC_TAG): value for key, value in figures.items()},
        run_id=item.run_id or "",
        step=int(tags[STEP_TAG]) if STEP_TAG in tags else None,
        created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
    )
