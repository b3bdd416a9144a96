"""How an arm is called, where it stands among others, and what it looks like on every page."""

from components.config import Arm
from components.methods import Method
from components.objective.commitment import Course

# The shade of a commitment that moves is that of a fixed one beside which it will hardly stand.
MOVING = {Course.LINEAR: 0.1, Course.COSINE: 0.3, Course.EACH: 0.45, Course.STEP: 0.65, Course.ADAPTIVE: 0.9}


def label_of(arm: Arm) -> str:
    """How people call an arm: "GARL q=0.75", "GRPO"."""
    return f"{arm.method.label} q={arm.q_text}" if arm.q_text else arm.method.label


def place_of(arm: Arm) -> tuple[float, int, str]:
    """Where an arm stands in an order by q: first those without one, last those whose q moves."""
    q = -1 if arm.commitment is None else 2 if arm.q is None else arm.q
    return q, list(Method).index(arm.method), arm.name


def shade(arm: Arm, *, dark: bool) -> str:
    """The colour of an arm: its method's hue, the further from the background the higher q is."""
    hue = [int(arm.method.hue[i : i + 2], 16) for i in (1, 3, 5)]
    q = 0.45  # of methods without one: their one shade is the hue itself, near enough
    if arm.commitment is not None:
        q = MOVING[arm.commitment.course] if arm.q is None else arm.q
    weight = 0.62 * q if dark else 0.28 - 0.8 * q
    target = 255 if weight > 0 else 0
    return "#" + "".join(f"{round(part + (target - part) * abs(weight)):02x}" for part in hue)
