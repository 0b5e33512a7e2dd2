"""A length of training, as a YAML writes it: ``20st``, ``1ep`` or ``10m``; imports no torch."""

import re
from typing import Any, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from trainer.process.words import listed


class Duration(NamedTuple):
    """A length of training: ``20st`` steps, ``1ep`` epochs or ``10m`` minutes."""

    value: int
    unit: str  # "st", "ep" or "m"

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read ``20st``; raises ValueError for anything else."""
        match = re.fullmatch("([1-9][0-9]{0,8})(st|ep|m)", str(text))
        if match is None:
            raise ValueError("expected a duration such as 20st, 1ep or 10m")
        return cls(int(match[1]), match[2])

    @classmethod
    def schema(cls, *units: str) -> dict[str, Any]:
        """The JSON Schema of a duration in some of the units."""
        examples = {"st": "20st", "ep": "1ep", "m": "10m"}
        names = {"st": "steps", "ep": "epochs", "m": "minutes"}
        return {
            "type": "string",
            "$comment": f"a whole number of {listed([names[unit] for unit in units], 'or')}",
            "pattern": f"^[1-9][0-9]{{0,8}}({'|'.join(units)})$",
            "examples": [examples[unit] for unit in units],
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="always")
        )
