"""Seeds: each depends on everything it is made of, and on nothing else."""

import subprocess
import sys
from itertools import combinations

import torch

from components.randomness import derive_seed, generator


def test_a_seed_depends_on_every_part_and_on_their_order() -> None:
    parts = [
        (0, "rollout", 1),
        (1, "rollout", 1),
        (0, "order", 1),
        (0, "rollout", 2),
        (0, 1, "rollout"),
        (0, "rollout"),
    ]
    parts += [(0, "rollout", 1, 0), (0, "rollout", 11), ("rollout", 1), (), ("probe", 0), ("probe", 16)]
    for one, other in combinations(parts, 2):
        assert derive_seed(*one) != derive_seed(*other)
    assert all(derive_seed(*part) == derive_seed(*part) for part in parts)


def test_a_seed_is_the_same_in_every_process() -> None:
    """Unlike Python's own hashes, which are salted."""
    code = "from components.randomness import derive_seed; print(derive_seed(3, 'rollout', 7))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(3, "rollout", 7)


def test_seeds_fill_63_bits() -> None:
    seeds = [derive_seed("range", number) for number in range(4000)]
    assert len(set(seeds)) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 1700 < sum(seed >> bit & 1 for seed in seeds) < 2300


def test_generators_are_private_and_repeat() -> None:
    state = torch.get_rng_state()
    first = torch.rand(5, generator=generator("a", 1))
    assert torch.equal(first, torch.rand(5, generator=generator("a", 1)))
    assert not torch.equal(first, torch.rand(5, generator=generator("a", 2)))
    assert torch.equal(state, torch.get_rng_state())
    assert generator("a", 1).initial_seed() == derive_seed("a", 1)
