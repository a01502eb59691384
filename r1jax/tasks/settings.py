"""The settings of a task, read from JSON: `--task-settings '{"max_terms": 3}'`."""

import dataclasses
import json
from typing import Any

from r1jax import tasks
from r1jax.plain import JsonObject
from r1jax.tasks import Difficulty

FLAG = 'task_settings'


def read(task: str, text: str = '') -> Difficulty:
  """Returns the config of a task with the settings of a JSON object; '' has none.

  Raises:
    ValueError: there is no such task, the text is no object in JSON, or a setting is
      unknown or wrong.
  """
  module = tasks.module(task)
  try:
    values = json.loads(text) if text else {}
  except ValueError:
    values = None
  if not isinstance(values, dict):
    raise ValueError(
      f'{FLAG}: expected an object in JSON, such as \'{{"size": 1000}}\', got {text!r}'
    )
  dataset = tasks.dataset_of(task)
  if dataset is not None:
    return module.config_of(dataset, values)
  return changed(module.SETTINGS(), values, task)


def changed(default: Any, values: JsonObject, owner: str) -> Any:
  """Returns a config with other values of some fields.

  Args:
    default: a dataclass.
    values: of fields, as JSON has them.
    owner: what the config belongs to, for errors.

  Raises:
    ValueError: a field is unknown, its value has another type than the default, or the
      config refuses it.
  """
  known = {
    field.name: getattr(default, field.name)
    for field in dataclasses.fields(default)
    if field.name != 'name'  # that of a difficulty on disk
  }
  for name, value in values.items():
    if name not in known:
      fields = ', '.join(f'{field} = {known[field]!r}' for field in known)
      raise ValueError(
        f'{FLAG}: {owner} has no setting {name!r}; it has {fields or "none"}'
      )
    if not _fits(value, known[name]):
      raise ValueError(
        f'{FLAG}: {owner} expects {name} to be like its default {known[name]!r}, got '
        f'{value!r}'
      )
  try:
    return dataclasses.replace(default, **values)
  except ValueError as error:
    raise ValueError(f'{FLAG}: {error}') from error


def _fits(value: object, default: object) -> bool:
  """Returns whether a value of JSON has the type of a default; any has that of None."""
  match default:
    case None:
      return True
    case bool():
      return isinstance(value, bool)
    case float():
      return isinstance(value, int | float) and not isinstance(value, bool)
    case str():
      return isinstance(value, str)
    case list() | tuple():
      return isinstance(value, list)
  return type(value) is type(default)
