"""Types of plain data: JSON objects and configs."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeGuard

JsonObject = Mapping[str, Any]  # as `json` reads it
JsonDict = dict[str, Any]  # one that is being made or changed


class Config(Protocol):
  """Any dataclass."""

  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


def is_config(value: object) -> TypeGuard[Config]:
  """Whether a value is a dataclass, such as a group of fields in a config."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)
