"""Parses a command line into a checked experiment config.

An experiment's config is a frozen dataclass of plain fields and of groups (`rl`,
`model`), which are frozen dataclasses themselves. `parse` takes a default instance and
lets the command line change any field: `--seed 3`, `--rl.grpo.kl-coef 0`, or a whole
group at once by the name of a preset: `--rl.grpo dapo`. Types and help come from the
dataclass through tyro; this module adds presets, suggestions and short errors.
"""

import contextlib
import copy
import dataclasses
import difflib
import inspect
import io
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from r1jax import plain
from r1jax.hub import paths

Config = TypeVar('Config', bound=plain.Config)
# Fields that hold the path of a folder or a file of this machine.
PATHS = ('workdir', 'data_dir', 'parent', 'adapter', 'run', 'out')
# Dotted path of a group -> name of a preset -> the group.
Presets = Mapping[str, Mapping[str, plain.Config]]
# Fields of version 0.1, as parts of a flag, and what they are called now.
RENAMED = {
  r'(base|sft|rl|preference)-optim(?=\.)': r'\1.optim',
  r'(?<=^--)grpo(?=\.|$)': 'rl.grpo',
  r'(?<=[a-z]\.)(?<!^--rl\.)(?<!\.rl\.)grpo(?=\.|$)': 'rl.grpo',
  r'(?<=-|\.)evaluate(?=\.)': 'evals',
  r'(?<=-|\.)scoreboard(?=\.)': 'suite',
}


def parse(
  default: Config, argv: Sequence[str] | None = None, presets: Presets | None = None
) -> Config:
  """Returns `default` with the changes of a command line.

  Field names may be written with - or _, values after a space or =. If a field is set
  twice, the last value holds. A preset replaces its group, and single fields then
  change the preset, in any order. A group with a field `path` takes it by the group's
  name: `--data FILE` is `--data.path FILE`. Configs check their final values in
  `__post_init__`, with a ValueError.

  Args:
    default: the config to start from.
    argv: words of the command line; by default those after the program's name.
    presets: by dotted path of a group.

  Raises:
    SystemExit: 2 after one `error: ...` line on stderr if a word is not understood or a
      config rejects its values; 0 after `--help`.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  presets = presets or {}
  try:
    words, chosen = _split_presets(_with_paths(words, default), presets)
    _check_names(words, [*_field_flags(default), *map(_flag, presets)])
    start = copy.copy(default)
    for group, preset in sorted(chosen.items(), key=lambda one: one[0].count('.')):
      _set_unchecked(start, group, preset)
    config = _parse_fields(start, words, _description(default, presets))
    _check_paths(config)
    return config
  except ValueError as mistake:
    _fail(str(mistake))


def _set_unchecked(config: object, path: str, value: object) -> None:
  """Sets the field at a dotted path in a copy of each group on the way.

  Not dataclasses.replace: it would check a preset against fields that the remaining
  words are about to change.
  """
  *groups, last = path.split('.')
  for group in groups:
    inner = copy.copy(getattr(config, group))
    object.__setattr__(config, group, inner)
    config = inner
  object.__setattr__(config, last, value)


def _split_presets(
  words: list[str], presets: Presets
) -> tuple[list[str], dict[str, plain.Config]]:
  """Returns the words that name no preset, and the chosen preset of each group."""
  rest: list[str] = []
  chosen: dict[str, plain.Config] = {}
  remaining = iter(words)
  for word in remaining:
    flag, equals, name = word.partition('=')
    group = flag.removeprefix('--').replace('-', '_')
    if not flag.startswith('--') or group not in presets:
      rest.append(word)
      continue
    known = presets[group]
    if not equals:
      name = next(remaining, '')
    if not name or name.startswith('--'):
      raise ValueError(f'{flag} expects a preset: one of {", ".join(known)}')
    if name not in known:
      raise ValueError(
        f'{flag} knows no preset {name}'
        f'{_suggestion(difflib.get_close_matches(name, known, 1))}; '
        f'expected one of {", ".join(known)}'
      )
    chosen[group] = known[name]
  return rest, chosen


def _with_paths(words: Sequence[str], config: plain.Config) -> list[str]:
  """Returns the words with `--data.path` for `--data`, where that group has a path."""
  fields = _field_flags(config)
  groups = {flag.removesuffix('.path') for flag in fields if flag.endswith('.path')}
  flags = (word.partition('=') for word in words)
  return [
    f'{flag}.path{equals}{value}' if flag in groups else f'{flag}{equals}{value}'
    for flag, equals, value in flags
  ]


def _flag(name: str) -> str:
  return '--' + name.replace('_', '-')


def _field_flags(config: plain.Config, prefix: str = '') -> list[str]:
  """Returns the flags of all fields and of the fields of groups, in order."""
  flags = []
  for field in dataclasses.fields(config):
    name = prefix + field.name
    value = getattr(config, field.name)
    if plain.is_config(value):
      flags += _field_flags(value, name + '.')
    else:
      flags.append(_flag(name))
  return flags


def _check_names(words: Iterable[str], known: Sequence[str]) -> None:
  for word in words:
    flag = word.partition('=')[0].replace('_', '-')
    if not flag.startswith('--') or flag in known or flag == '--help':
      continue
    if (renamed := _renamed(flag)) in known:
      raise ValueError(f'{flag} is called {renamed} now')
    last_part = '.' + flag.removeprefix('--')
    meant = (
      [name for name in known if name.endswith(last_part)]  # the group left out
      or [name for name in known if name.startswith(flag + '.')]  # a whole group
      or difflib.get_close_matches(flag, known, 1)
    )
    raise ValueError(
      f'{word.partition("=")[0]} is not a field{_suggestion(meant[:3])}; '
      '--help lists them all'
    )


def _renamed(flag: str) -> str:
  """Returns what a flag of version 0.1 is called now."""
  for before, now in RENAMED.items():
    flag = re.sub(before, now, flag)
  return flag


def _check_paths(config: plain.Config, prefix: str = '') -> None:
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if plain.is_config(value):
      _check_paths(value, f'{prefix}{field.name}.')
    elif field.name in PATHS and isinstance(value, str):
      paths.check_local(prefix + field.name, value)


def _suggestion(meant: Sequence[str]) -> str:
  return f' (did you mean {" or ".join(meant)}?)' if meant else ''


def _description(default: plain.Config, presets: Presets) -> str:
  """Returns the head of --help: the experiment's docstring and its presets."""
  lines = [
    f'{_flag(group)} PRESET sets fields of the group: {", ".join(known)}'
    for group, known in presets.items()
  ]
  return '\n\n'.join([inspect.getdoc(default) or '', *lines])


def _parse_fields(start: Config, words: list[str], description: str) -> Config:
  """Returns `start` with the fields that `words` set, parsed by tyro.

  Raises:
    ValueError: with tyro's reason in one line.
    SystemExit: 0, after --help.
  """
  import tyro  # takes 0.3 s, which reward workers that import an experiment save

  registry = tyro.constructors.ConstructorRegistry()
  registry.primitive_rule(_name_or_function)
  printed = io.StringIO()
  try:
    with contextlib.redirect_stderr(printed), registry:
      return tyro.cli(
        type(start),
        default=start,
        args=words,
        description=description,
        prog=_program(),
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
      )
  except SystemExit as end:
    if end.code == 0:
      raise
    raise ValueError(_unboxed(printed.getvalue())) from end


def _name_or_function(info: Any) -> Any:
  """tyro's rule for a field of type `str | Callable`: it takes a name, as a `str` does.

  None for other types. A function can only be set in Python, such as by a default.
  """
  kinds = typing.get_args(info.type)
  if str not in kinds or not any(typing.get_origin(x) is Callable for x in kinds):
    return None
  import tyro

  return tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar='NAME',
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda value: [getattr(value, '__qualname__', value)],
  )


def _program() -> str:
  """Returns the command of the running module: `python -m experiments.r1_zero`."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  return f'python -m {spec.name}' if spec else sys.argv[0]


def _unboxed(box: str) -> str:
  """Returns tyro's error as one line, without frame, colours, title and help text."""
  plain = re.sub(r'\x1b\[[0-9;]*m', '', box)
  rows = [row.strip(' │|') for row in plain.splitlines()[1:]]
  lines = [row for row in rows if row.strip('╰╯+─-')]
  reason = re.split('Argument helptext:|For full helptext', ' '.join(lines))[0].strip()
  reason = re.sub(
    r'Could not find valid parse for arguments: (\[.*\])',
    r'expected values as --help shows them, got \1',
    reason,
  )
  # A config's own check names its field within its group, or with the group's name, or
  # it names several fields.
  named = re.match(r'Error parsing ([^\s:]+): (.*)', reason, re.DOTALL)
  if named is None:
    return reason.removeprefix('Error parsing ')
  place, text = named.groups()
  if place.startswith('--'):
    return f'{place}: {text}'
  if not place.islower():  # the class of the whole config
    return text
  place = place.replace('-', '_')
  text = text.removeprefix(place.rpartition('.')[2] + '.')
  return f'{place}{"." if re.match(r"[a-z0-9_.]+: ", text) else ": "}{text}'


def _fail(sentence: str) -> NoReturn:
  print(f'error: {sentence}', file=sys.stderr)
  raise SystemExit(2)
