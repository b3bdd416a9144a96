"""What a run shows of itself while it learns, in words and in figures for programs."""

from collections.abc import Mapping, Sequence


def live_figures(curves: Sequence[Mapping[str, float]], speed: Mapping[str, float], k: int) -> dict[str, float]:
    """From the curves so far and the speed of the last step: p, the last maj_at_K and its step, if any, and speed."""
    figures = {"p": curves[-1]["train/p_estimate"]}
    score = f"validation/maj_at_{k}"
    if last := next((row for row in reversed(curves) if score in row), None):
        figures |= {f"maj_at_{k}": last[score], "validated_step": last["step"]}
    return figures | {name.removeprefix("speed/"): value for name, value in speed.items()}


def told(figures: Mapping[str, float], k: int) -> str:
    """These figures in a line."""
    parts = [f"P {figures['p']:.2g}"]
    if (score := figures.get(f"maj_at_{k}")) is not None:
        parts.append(f"maj@{k} {score:.0%}")
    parts += [f"{figures['step_seconds']:.2g} s/step", f"{figures['tokens_per_second']:,.0f} tokens/s"]
    return ", ".join(parts)
