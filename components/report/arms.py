"""How an arm is called, where it stands among others, and what it looks like on every page."""

from components.config import Arm, Method
from components.objective.commitment import Course

METHOD_NAMES = {
    Method.GRPO: "GRPO",
    Method.DR_GRPO: "Dr. GRPO",
    Method.RLOO: "RLOO",
    Method.MAXRL: "MaxRL",
    Method.STAR: "STaR",
    Method.GARL: "GARL",
    Method.GARL_PLUGIN: "plug-in GARL",
    Method.GARL_DEBIASED: "debiased GARL",
    Method.GARL_SCORE: "score-only GARL",
    Method.PAFT: "PAFT",
    Method.GARL_PAFT: "GARL→PAFT",
}
# One hue a method, those of the continuum told apart by colour-blind readers too (Paul Tol's vibrant scheme), the peers
# muted; and one marker.
HUES = {
    Method.GRPO: "#6f6f6f",
    Method.DR_GRPO: "#8a7f6a",
    Method.RLOO: "#6a7f8a",
    Method.MAXRL: "#7a5c3e",
    Method.STAR: "#5c6e3a",
    Method.GARL: "#0077bb",
    Method.GARL_PLUGIN: "#009988",
    Method.GARL_DEBIASED: "#d0307f",
    Method.GARL_SCORE: "#7d52c4",
    Method.PAFT: "#e5701f",
    Method.GARL_PAFT: "#a8552a",
}
MARKERS = {
    Method.GRPO: "^",
    Method.DR_GRPO: "<",
    Method.RLOO: ">",
    Method.MAXRL: "P",
    Method.STAR: "*",
    Method.GARL: "o",
    Method.GARL_PLUGIN: "v",
    Method.GARL_DEBIASED: "D",
    Method.GARL_SCORE: "d",
    Method.PAFT: "s",
    Method.GARL_PAFT: "X",
}
# The shade of a commitment that moves is that of a fixed one beside which it will hardly stand.
MOVING = {Course.LINEAR: 0.1, Course.COSINE: 0.3, Course.EACH: 0.45, Course.STEP: 0.65, Course.ADAPTIVE: 0.9}


def label_of(arm: Arm) -> str:
    """How people call an arm: "GARL q=0.75", "GRPO"."""
    return f"{METHOD_NAMES[arm.method]} q={arm.q_text}" if arm.q_text else METHOD_NAMES[arm.method]


def place_of(arm: Arm) -> tuple[float, int, str]:
    """Where an arm stands in an order by q: first those without one, last those whose q moves."""
    q = -1 if arm.commitment is None else 2 if arm.q is None else arm.q
    return q, list(Method).index(arm.method), arm.name


def shade(arm: Arm, *, dark: bool) -> str:
    """The colour of an arm: its method's hue, the further from the background the higher q is."""
    hue = [int(HUES[arm.method][i : i + 2], 16) for i in (1, 3, 5)]
    q = 0.45  # of methods without one: their one shade is the hue itself, near enough
    if arm.commitment is not None:
        q = MOVING[arm.commitment.course] if arm.q is None else arm.q
    weight = 0.62 * q if dark else 0.28 - 0.8 * q
    target = 255 if weight > 0 else 0
    return "#" + "".join(f"{round(part + (target - part) * abs(weight)):02x}" for part in hue)
