"""Seeds derived from what they are for, so that no random state has to be carried from step to step."""

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all of `parts` and on nothing else: derive_seed(seed, "rollout", step)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A private generator seeded by derive_seed(*parts); torch's global one is never relied on."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
