"""The licences of all that is pinned, as the packages declare them."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from infra.pins import LISTS, pins

NONE = "none declared"
GROUPS = {
    "Copyleft, alone or as a choice": re.compile(r"GPL|MPL|EPL|CDDL|GNU|Mozilla|Eclipse", re.IGNORECASE),
    "Proprietary": re.compile("proprietary", re.IGNORECASE),
    "Unknown": re.compile(f"^{NONE}$"),
    "All others": re.compile(""),
}


def not_installed() -> list[str]:
    """The pins of packages that are not in this environment."""
    return [f"{name}=={version}" for name, version in _pinned().items() if not _own(name)]


def write_licences(report: str, file: str) -> None:
    """Write a table of all pinned packages, those first that somebody may have to look at.

    report: what pip says of the packages that are not installed, as JSON.
    """
    described = [item["metadata"] for item in json.loads(Path(report).read_text(encoding="utf-8"))["install"]]
    others = {re.sub("[-_.]+", "-", one["name"]).lower(): licence(one) for one in described}
    found = {name: _own(name) or others[name] for name in _pinned()}
    Path(file).write_text("\n".join(_page(found)), encoding="utf-8")


def licence(declared: Mapping[str, Any]) -> str:
    """What a package's metadata say: an SPDX expression, or else the classifiers and the text where it is a name."""
    if expression := declared.get("license_expression"):
        return expression
    classifiers = [text for text in declared.get("classifier", []) if text.startswith("License ::")]
    names = [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    # Some write the whole licence there; its first line tells which one it is.
    first = (declared.get("license") or "").strip().partition("\n")[0].strip()
    return "; ".join(dict.fromkeys([*names, *([first] if first else [])])) or NONE


def group(text: str) -> str:
    """The heading under which a licence stands."""
    return next(name for name, pattern in GROUPS.items() if pattern.search(text))


def _page(found: Mapping[str, str]) -> Iterator[str]:
    lists = {name: pins(file) for name, file in LISTS.items()}
    for heading in GROUPS:
        members = {name: text for name, text in found.items() if group(text) == heading}
        yield f"## {heading}: {len(members)}\n\n| package | pinned for | licence |\n| --- | --- | --- |"
        for name, text in sorted(members.items()):
            where = ", ".join(f"{stack} {listed[name]}" for stack, listed in lists.items() if name in listed)
            yield f"| {name} | {where} | {text.replace('|', '/')} |"
        yield ""


def _pinned() -> dict[str, str]:
    return {name: version for file in LISTS.values() for name, version in pins(file).items()}


def _own(name: str) -> str | None:
    """The licence of an installed package."""
    try:
        return licence(metadata(name).json)
    except PackageNotFoundError:
        return None
