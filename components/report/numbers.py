"""Numbers as people write them."""

import math

from components.evaluation.metrics import Estimate

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(value: float) -> str:
    """A fraction of 1: 12.3%."""
    return f"{100 * value:.1f}%"


def interval(estimate: Estimate) -> str:
    """The 95% interval of a fraction of 1, in percent: [10.1, 14.2]."""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def scientific(value: float, digits: int = 2) -> str:
    """So many digits, and powers of ten as people write them: 0.012, 3.1 × 10⁻⁷."""
    if math.isinf(value):
        return f"over 10{'308'.translate(SUPERSCRIPT)}"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        rounded = f"{value:.{digits}g}"
        return rounded if "e" not in rounded and abs(value) < 10**digits else f"{value:,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def power(exponent: float) -> str:
    """A power of ten in Unicode."""
    return "1" if round(exponent) == 0 else "10" + str(round(exponent)).translate(SUPERSCRIPT)
