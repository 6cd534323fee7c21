"""A setting of a method: its default, its bounds, and how a value given as text or YAML is checked."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

type Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One named value of a method.

    Numbers lie in [``minimum``, ``maximum``] and above ``above``; strings are one of ``choices`` or pass ``check``,
    which raises ValueError and names the setting. A default of None means that None is allowed; ``number`` then says
    what else is.
    """

    name: str
    default: Value
    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[str], object] | None = None
    number: type | None = None

    def parse(self, given: object) -> Value:
        """Value from YAML or from text on a command line; ValueError names setting, bound and value."""
        if self.default is None and (given is None or given == "null"):
            return None
        if isinstance(self.default, str):
            return self._text(given)
        wanted = self.number or type(self.default)
        value = _number(given, wanted)
        if value is None:
            raise ValueError(f"{self.name} must be {_named(wanted)}, got {given!r}")
        for bound, sign, holds in (
            (self.minimum, ">=", operator.ge),
            (self.maximum, "<=", operator.le),
            (self.above, ">", operator.gt),
        ):
            if bound is not None and not holds(value, bound):
                raise ValueError(f"{self.name} must be {sign} {bound:g}, got {given}")
        return value

    def as_json(self) -> dict[str, Any]:
        """The setting for ``pipeline methods --json``."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum, "above": self.above}
        described: dict[str, Any] = {"name": self.name, "default": self.default, "help": self.help}
        described |= {name: bound for name, bound in bounds.items() if bound is not None}
        return described | ({"choices": list(self.choices)} if self.choices else {})

    def _text(self, given: object) -> str:
        if not isinstance(given, str):
            raise ValueError(f"{self.name} must be text, got {given!r}")  # noqa: TRY004 - as the other mistakes
        if self.choices and given not in self.choices:
            raise ValueError(f"{self.name} must be {' or '.join(self.choices)}, got {given!r}")
        if self.check is not None:
            self.check(given)
        return given


def _number(given: object, wanted: type) -> float | int | None:
    """``given`` as a whole or finite number; None when it is none."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        value = wanted(given) if isinstance(given, str) or float(given) == wanted(given) else None
    except (ValueError, OverflowError):
        return None
    return value if value is not None and math.isfinite(value) else None


def _named(wanted: type) -> str:
    return "a whole number" if wanted is int else "a number"
