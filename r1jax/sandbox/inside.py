"""The code that runs inside the sandbox; it imports the standard library alone.

An interpreter is started before there is a program. It waits for a job on its standard
input, limits itself, and does the job once: `run` runs a program. `serve` runs one and
then calls its functions for another interpreter, which does `test`: it runs the tests
with stand-ins for what the program defines. Between the two there are messages of plain
data, see `encode`. What is no plain data stays where it is, and has a number.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import site
import sys
import types

# Others are imported where they are needed: an import takes as long as a short program.
TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable, Iterator, Sequence
  from typing import Any

LENGTH = 8  # bytes before a message, its length
PROGRAM = '<program>'  # file name in tracebacks
NUMBER = 'number'  # of an object that stays in the program's interpreter
OPEN_FILES = 64
LARGE = 2**64
TYPES = {n: value for n, value in vars(builtins).items() if isinstance(value, type)}
CONTAINERS: dict[str, Callable[[Any], Any]] = {
  'int': lambda parts: int(parts[0], 16),
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
  'range': lambda parts: range(*parts),
  'dict': dict,
  'bytes': bytes,
  'complex': lambda parts: complex(*parts),
  'Decimal': lambda parts: _imported('decimal').Decimal(*parts),
  'Fraction': lambda parts: _imported('fractions').Fraction(*parts),
  'type': lambda parts: TYPES[parts[0]],
}
OPERATIONS: dict[str, Callable[..., Any]] = {
  'call': lambda function, args, kwargs: function(*args, **dict(kwargs)),
  'get': getattr,
  'set': setattr,
  'iter': iter,
  'next': lambda iterator: [item for _, item in zip([None], iterator, strict=False)],
  'len': len,
  'item': lambda container, key: container[key],
  'has': lambda container, item: item in container,
  'str': str,
  'repr': repr,
  'bool': bool,
}


class ProgramError(Exception):
  """An exception of the program that is no built-in one, or its end."""


class Channel:
  """Messages between two interpreters, each a length and JSON."""

  def __init__(self, socket: int) -> None:
    self._json = _imported('json')
    self._socket = socket
    self._reading = os.fdopen(socket, 'rb', closefd=False)

  def send(self, message: Any) -> None:
    content = self._json.dumps(message).encode()
    rest = memoryview(len(content).to_bytes(LENGTH, 'big') + content)
    while rest:
      rest = rest[os.write(self._socket, rest) :]

  def receive(self) -> Any:
    """Returns the next message; raises EOFError where there is none."""
    size = self._reading.read(LENGTH)
    if len(size) < LENGTH:
      raise EOFError
    return self._json.loads(self._reading.read(int.from_bytes(size, 'big')))


def _imported(name: str) -> Any:
  import importlib

  return importlib.import_module(name)


def encode(value: Any, number_of: Callable[[Any], int]) -> Any:
  """Returns a value as JSON: plain data by value, anything else as a number.

  Of a subclass of a plain type, such as a named tuple or a counter, the plain value is
  taken.
  """
  if value is None or isinstance(value, bool | str):
    return value if value is None or isinstance(value, bool) else str.__str__(value)
  if isinstance(value, int):
    plain = int.__int__(value)
    # A decimal number takes quadratic time to read and write.
    return plain if -LARGE < plain < LARGE else {'int': [hex(plain)]}
  if isinstance(value, float):
    return float.__float__(value)

  def each(items: Any) -> list[Any]:
    return [encode(item, number_of) for item in items]

  if isinstance(value, list):
    return each(list.__iter__(value))
  for name, parts in _parts(value):
    return {name: each(parts)}
  if type(value).__module__ == 'numpy' and hasattr(value, 'tolist'):
    return encode(value.tolist(), number_of)
  return {NUMBER: number_of(value)}


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
  """Yields the name of a container in `CONTAINERS`, and what it is made of."""
  match value:
    case tuple():
      yield 'tuple', tuple.__iter__(value)
    case set():
      yield 'set', set.__iter__(value)
    case frozenset():
      yield 'frozenset', frozenset.__iter__(value)
    case range():
      yield 'range', (value.start, value.stop, value.step)
    case dict():
      yield 'dict', dict.items(value)
    case bytes() | bytearray():
      yield 'bytes', bytes(value)
    case complex():
      yield 'complex', (value.real, value.imag)
    case type() if TYPES.get(value.__name__) is value:
      yield 'type', (value.__name__,)
  kind = f'{type(value).__module__}.{type(value).__name__}'
  if kind == 'decimal.Decimal':
    yield 'Decimal', (str(value),)
  if kind == 'fractions.Fraction':
    yield 'Fraction', (value.numerator, value.denominator)


def decode(value: Any, object_of: Callable[[int], Any]) -> Any:
  """Returns the value of `encode`."""
  if isinstance(value, list):
    return [decode(item, object_of) for item in value]
  if not isinstance(value, dict):
    return value
  ((name, parts),) = value.items()
  if name == NUMBER:
    return object_of(parts)
  return CONTAINERS[name](decode(parts, object_of))


def run(job: dict[str, Any]) -> None:
  """Runs a program as the main module."""
  file = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)
  with os.fdopen(file, 'wb', closefd=False) as lines:
    lines.write(job['stdin'].encode('utf-8', 'surrogateescape'))
  os.lseek(file, 0, os.SEEK_SET)
  os.dup2(file, 0)
  os.close(file)
  sys.stdin = os.fdopen(0, encoding='utf-8', errors='surrogateescape', closefd=False)
  limit(job)
  _execute(job['code'], '__main__')


def serve(job: dict[str, Any]) -> None:
  """Runs a program, and then what another interpreter asks of its objects."""
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  objects: list[Any] = []
  numbers: dict[int, int] = {}

  def number_of(value: Any) -> int:
    if id(value) not in numbers:  # never freed, as `objects` holds it
      numbers[id(value)] = len(objects)
      objects.append(value)
    return numbers[id(value)]

  channel = Channel(job['socket'])
  limit(job)
  try:
    module = _execute(job['code'], 'program')
  except BaseException as error:
    channel.send({'error': _described(error)})
    raise
  public = {n: v for n, v in vars(module).items() if not n.startswith('__')}
  modules = [n for n, value in public.items() if isinstance(value, types.ModuleType)]
  names = {n: encode(v, number_of) for n, v in public.items() if n not in modules}
  channel.send({'names': names, 'modules': modules})
  while True:
    try:
      operation, number, *rest = channel.receive()
    except EOFError:
      return
    try:
      args = [decode(arg, objects.__getitem__) for arg in rest]
      value = OPERATIONS[operation](objects[number], *args)
      answer = {'value': encode(value, number_of)}
    except Exception as error:
      answer = {'raised': [type(error).__name__, str(error)[:1000]]}
    channel.send(answer)


def test(job: dict[str, Any]) -> None:
  """Runs tests of a program that another interpreter serves; prints a line for each.

  The first line is what the program ended with, or null. Then, for each test, null if
  it passed, or else the reason.
  """
  report = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  channel = Channel(job['socket'])
  program = Program(channel)

  def say(reason: str | None) -> None:
    print(_imported('json').dumps(reason), file=report, flush=True)

  limit(job)
  module = types.ModuleType('__main__')
  sys.modules['__main__'] = module
  space = vars(module)
  exec(compile(job['setup'], '<setup>', 'exec'), space)
  try:
    _take_names(channel.receive(), job['names'], space, program.object_of)
  except EOFError:
    say('it ended')
    return
  except Exception as error:  # also of a message that the program made up
    say(_described(error))
    return
  say(None)
  for source in job['tests']:
    try:
      exec(compile(source, '<test>', 'exec'), space)
    except BaseException as error:
      say(_described(error))
    else:
      say(None)


def _take_names(
  found: dict[str, Any],
  wanted: Sequence[str],
  space: dict[str, Any],
  object_of: Callable[[int], Any],
) -> None:
  """Gives the tests' module the names of the program.

  Raises:
    ProgramError: the program raised something.
  """
  if 'error' in found:
    raise ProgramError(found['error'])
  for name, value in found['names'].items():
    if name in wanted:
      space[name] = decode(value, object_of)
  for name in found['modules']:
    if name in sys.stdlib_module_names:
      space.setdefault(name, _imported(name))


class Program:
  """The program that another interpreter serves."""

  def __init__(self, channel: Channel) -> None:
    self._channel = channel
    self._known: dict[int, Remote] = {}

  def ask(self, operation: str, number: int, *args: Any) -> Any:
    """Returns the result of one of `OPERATIONS` on the object of a number."""
    encoded = [encode(arg, _number_of) for arg in args]
    self._channel.send([operation, number, *encoded])
    try:
      answer = self._channel.receive()
    except EOFError:
      raise ProgramError('the program ended') from None
    if 'raised' in answer:
      raise _exception(*answer['raised'])
    return decode(answer['value'], self.object_of)

  def object_of(self, number: int) -> Remote:
    """Returns what stands for an object, always the same."""
    return self._known.setdefault(number, Remote(self, number))


class Remote:
  """Stands for an object of the program; equal to itself alone."""

  __slots__ = ('_number', '_program')

  def __init__(self, program: Program, number: int) -> None:
    object.__setattr__(self, '_program', program)
    object.__setattr__(self, '_number', number)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return _ask(self, 'call', args, kwargs)

  def __getattr__(self, name: str) -> Any:
    return _ask(self, 'get', name)

  def __setattr__(self, name: str, value: Any) -> None:
    _ask(self, 'set', name, value)

  def __iter__(self) -> Iterator[Any]:
    iterator = _ask(self, 'iter')
    if type(iterator) is not Remote:
      raise TypeError('the program gave no iterator')
    while item := _ask(iterator, 'next'):
      yield item[0]

  def __len__(self) -> int:
    return _ask(self, 'len')

  def __getitem__(self, key: Any) -> Any:
    return _ask(self, 'item', key)

  def __contains__(self, item: Any) -> bool:
    return _ask(self, 'has', item)

  def __bool__(self) -> bool:
    return _ask(self, 'bool')

  def __str__(self) -> str:
    return _ask(self, 'str')

  def __repr__(self) -> str:
    return _ask(self, 'repr')


def _ask(remote: Remote, operation: str, *args: Any) -> Any:
  program = object.__getattribute__(remote, '_program')
  return program.ask(operation, _number_of(remote), *args)


def _number_of(value: Any) -> int:
  if type(value) is Remote:
    return object.__getattribute__(value, '_number')
  raise TypeError(f'a {type(value).__name__} can not be given to the program')


def _exception(name: str, message: str) -> Exception:
  """Returns the built-in exception of a name, or a `ProgramError` that names it."""
  kind = TYPES.get(name)
  if kind is not None and issubclass(kind, Exception):
    return kind(message)
  return ProgramError(f'{name}: {message}')


def _execute(code: str, name: str) -> types.ModuleType:
  """Returns a module of this name after its code has run."""
  module = types.ModuleType(name)
  sys.modules[name] = module
  exec(compile(code, PROGRAM, 'exec'), vars(module))
  return module


def _described(error: BaseException) -> str:
  name, words = type(error).__name__, ' '.join(str(error).split())
  return f'{name}: {words}'[:500] if words else name


def limit(job: dict[str, Any]) -> None:
  """Bounds what this process may use from now on; nothing can raise it again."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  cpu = int(used.ru_utime + used.ru_stime) + 1 + job['cpu']
  for kind, soft, hard in (
    (resource.RLIMIT_CPU, cpu, cpu + 1),
    (resource.RLIMIT_AS, job['memory'], job['memory']),
    (resource.RLIMIT_FSIZE, job['files'], job['files']),
    (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
    (resource.RLIMIT_CORE, 0, 0),
  ):
    resource.setrlimit(kind, (soft, hard))


def _traceback(error: BaseException, code: str) -> str:
  """Returns the traceback of an exception, without the frames of this file."""
  import linecache
  import traceback

  lines = code.splitlines(keepends=True)
  linecache.cache[PROGRAM] = (len(code), None, lines, PROGRAM)
  here = error.__traceback__
  while here and here.tb_frame.f_code.co_filename == __file__:
    here = here.tb_next
  return ''.join(traceback.format_exception(type(error), error, here))


def _job() -> Any:
  """Returns the job, of whoever made the sandbox; None without one."""
  with os.fdopen(0, 'rb', closefd=False) as reading:
    content = reading.read()
  return marshal.loads(content) if content else None


def main() -> None:
  """Waits for a job, and does it."""
  site.setquit()  # exit() and quit(), without the packages of the machine
  job = _job()
  if job is None:
    return  # not needed
  sys.path.extend(job['path'])
  try:
    {'run': run, 'serve': serve, 'test': test}[job['kind']](job)
  except SystemExit:
    raise
  except BaseException as error:
    sys.stdout.flush()
    sys.stderr.write(_traceback(error, job.get('code', '')))
    sys.exit(1)


if __name__ == '__main__':
  main()
