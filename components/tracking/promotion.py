"""Which version of a registered model is its champion, and which were before it.

`NAME@champion` alone says who it is, and moving that alias is the one step that changes it. The list of champions
beside it serves to undo: what follows the champion in it was never completed, or was undone, and does not count.
"""

from datetime import UTC, datetime

from components.errors import UserError
from components.tracking.card import PROMOTION_TAG
from components.tracking.registry import Registry
from components.tracking.version import Version

CHAMPION, CANDIDATE = "champion", "candidate"
CHAMPIONS_TAG = "thaw.champions"  # of the registered model: the numbers of its champions, the last one last
REMEMBERED = 100


def champion(registry: Registry, name: str) -> Version | None:
    """The champion of a registered model, if it has one."""
    return next((version for version in registry.versions(name) if CHAMPION in version.aliases), None)


def promote(registry: Registry, version: Version, instead_of: Version | None, reason: str) -> None:
    """Make a version the champion in place of the one it was compared with.

    The reason is on the version before the alias moves: there is no champion without one, and a promotion that is
    interrupted has not happened.

    Raises:
        UserError: another version became champion meanwhile.
    """
    with registry.store.lock:
        now = champion(registry, version.name)
        if (now and now.version) != (instead_of and instead_of.version):
            raise UserError(
                f"{now.reference if now else 'nothing'} became the champion of {version.name} meanwhile; run again."
            )
        line = _champions(registry, version.name)
        place = f"in place of {instead_of.reference}" if instead_of else "as the first champion"
        registry.set_tags(version, {PROMOTION_TAG: f"Promoted on {_today()} {place}: {reason}"})
        _remember(registry, version.name, [*line, version.version])
        registry.set_alias(version.name, CHAMPION, version.version)
        registry.remove_alias(version.name, CANDIDATE)


def refuse(registry: Registry, version: Version, reason: str) -> None:
    """Write to a version why it was not promoted; it stays the candidate."""
    registry.set_tags(version, {PROMOTION_TAG: f"Not promoted on {_today()}: {reason}"})


def undo(registry: Registry, name: str) -> tuple[Version, Version | None]:
    """Give the title back to the champion before; returns the version that lost it and the one that has it now.

    Raises:
        UserError: the model has no champion.
    """
    with registry.store.lock:
        undone = champion(registry, name)
        if undone is None:
            raise UserError(f"{name} has no champion; there is no promotion to undo.")
        line = _champions(registry, name)[:-1]
        again = registry.find(f"{name}/{line[-1]}") if line else None
        if again is None:
            registry.remove_alias(name, CHAMPION)
        else:
            registry.set_alias(name, CHAMPION, again.version)
        _remember(registry, name, line)
        after = f"{again.reference} is champion again" if again else "there is no champion"
        registry.set_tags(undone, {PROMOTION_TAG: f"Promotion undone on {_today()}: {after}"})
        return undone, again


def _champions(registry: Registry, name: str) -> list[int]:
    """The champions so far, ending with the present one; as many of the list's last as it takes are left out."""
    model = registry.store.call(registry.store.client.get_registered_model, name)
    line = [int(number) for number in model.tags.get(CHAMPIONS_TAG, "").split()]
    if CHAMPION not in model.aliases:
        return []
    now = int(model.aliases[CHAMPION])
    known = list(line)
    while known and known[-1] != now:
        known.pop()
    return known or [*line, now]  # somebody else has moved the alias


def _remember(registry: Registry, name: str, line: list[int]) -> None:
    text = " ".join(map(str, line[-REMEMBERED:]))
    registry.store.call(registry.store.client.set_registered_model_tag, name, CHAMPIONS_TAG, text)


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
