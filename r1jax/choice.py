"""A choice in a config: a name in a table of functions, or a function of one's own.

The command line gives names. An experiment may pass a function instead, without adding
it to the table. Records of a run name the function, so it must have a name.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

Function = Callable[..., Any]
Choice = str | Function


def choose(table: Mapping[str, Function], value: Choice) -> Function:
  """Returns the function that the choice names or is."""
  return table[value] if isinstance(value, str) else value


def checked(field: str, value: Choice, table: Mapping[str, Function]) -> Choice:
  """Returns the choice; a function that is in the table becomes its name.

  Raises:
    ValueError: for a name that is not in the table, or a function without a name.
  """
  if not isinstance(value, str):
    names = {function: name for name, function in table.items()}
    if not hasattr(value, '__qualname__'):
      raise ValueError(
        f'{field}: expected a name or a function with a name, got {value!r}; define '
        'the function with def'
      )
    return names.get(value, value)
  if value not in table:
    near = difflib.get_close_matches(value, table, 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'{field}: expected one of {", ".join(table)}, got {value!r}{hint}'
    )
  return value


def label(value: Choice) -> str:
  """Returns the choice as errors print it: 'name' in quotes, or function."""
  return repr(value) if isinstance(value, str) else value.__qualname__
