"""What unquoted text means in YAML 1.2's core schema.

``1e-3`` is a number, ``off`` and ``12:30`` are text, ``010`` is ten, only true and false are
booleans.
"""

import math
import re
from typing import Any

_INT = re.compile(r"[-+]?[0-9]{1,30}|0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_NOT_A_NUMBER = (".nan", ".NaN", ".NAN")


def scalar(text: str) -> Any:
    """The value of unquoted text; raises ValueError for a number that nothing can hold."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text, base)
        if abs(number) >= 1 << 63:
            raise ValueError("this number is too large")
        return number
    if text in _NOT_A_NUMBER:
        raise ValueError("'.nan' is no setting; write a number")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError("this number is too large")
        return value
    return text


def is_text(text: str) -> bool:
    """Whether ``text`` means itself when it is written without quotes."""
    try:
        return isinstance(scalar(text), str)
    except ValueError:
        return False
