"""A choice in a config: a name in a table of functions, or a function of one's own.

The command line gives names. An experiment may pass a function instead, without adding
it to the table. Records of a run name the function, so it must have a name.
"""

import difflib
import importlib
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


def imported(field: str, path: str) -> Function:
  """Returns the function at `package.module:function`.

  Raises:
    ValueError: there is no such module or function.
  """
  module, colon, name = path.partition(':')
  if not (colon and name and all(part.isidentifier() for part in module.split('.'))):
    raise ValueError(f'{field}: expected package.module:function, got {path!r}')
  try:
    found = getattr(importlib.import_module(module), name, None)
  except Exception as error:  # the module may raise anything
    raise ValueError(
      f'{field}: the module {module} of {path!r} cannot be imported '
      f'({type(error).__name__}: {error}); run the command in the folder that holds '
      'it, or put that on PYTHONPATH'
    ) from error
  if not callable(found):
    raise ValueError(f'{field}: the module {module} has no function {name!r}')
  return found


def label(value: Choice) -> str:
  """Returns the choice as errors print it: 'name' in quotes, or function."""
  return repr(value) if isinstance(value, str) else value.__qualname__
