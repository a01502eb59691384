"""Logs of a run: metrics.jsonl, samples.jsonl and TensorBoard.

`Log` writes them; `parse_line` reads a line of the first two. Values are plain numbers
under the names they have in metrics.jsonl. Nothing here knows models or devices.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from r1jax import tfrecord
from r1jax.plain import JsonObject
from r1jax.statistics import Interval

# Evaluations run inside the RL loop and share its steps and its checkpoints.
LOOP_OF = {'eval': 'rl'}
# Rejection sampling resumes from the file of its outputs.
WITHOUT_CHECKPOINT = ('rejection',)


def parse_line(raw: bytes) -> JsonObject | None:
  """Returns a line of metrics.jsonl or samples.jsonl; None if it is damaged."""
  try:
    line = json.loads(raw, parse_constant=lambda _: None)
  except ValueError:
    return None
  whole = isinstance(line, dict) and isinstance(line.get('phase'), str)
  return line if whole and type(line.get('step')) is int else None


class Log:
  """The log files of a run, open for writing; a context manager.

  Opening drops lines past the step in `resume`, lines of other phases, and a
  half-written last line. So a run that was killed and resumed writes the same files as
  one that was not. Each call appends in one system call: write a step, then save it.
  Phases `WITHOUT_CHECKPOINT` keep all their lines until they call `resume`.

  Args:
    workdir: the run's folder.
    resume: last step with a checkpoint, by phase.
    least_lines: lines that metrics.jsonl must have after dropping.

  Attributes:
    lines: number of lines in metrics.jsonl.

  Raises:
    ValueError: a line other than the last is damaged, or there are fewer than
      `least_lines`.
    OSError: the disk is full, or a file can't be written; the message says what to do.
  """

  def __init__(
    self, workdir: Path | str, resume: Mapping[str, int], least_lines: int = 0
  ) -> None:
    self._workdir = Path(workdir)
    self._resume = dict(resume)
    self._least_lines = least_lines
    self.lines = 0
    self._events: dict[str, _File] = {}

  def __enter__(self) -> Self:
    def last(phase: str) -> float:
      if phase in WITHOUT_CHECKPOINT:
        return math.inf
      return self._resume.get(LOOP_OF.get(phase, phase), -1)

    self._open(last, self._least_lines)
    return self

  def __exit__(self, *exception: object) -> None:
    for file in self._metrics, self._samples, *self._events.values():
      file.close()

  def _open(self, last: Callable[[str], float], least_lines: int = 0) -> None:
    metrics, samples = self._workdir / 'metrics.jsonl', self._workdir / 'samples.jsonl'
    self.lines = _drop_unfinished(metrics, last, least_lines)
    _drop_unfinished(samples, last)
    self._metrics, self._samples = _File(metrics), _File(samples)

  def resume(self, phase: str, step: int) -> None:
    """Drops the lines past `step` of a phase without a checkpoint."""
    self._resume[phase] = step
    self._metrics.close()
    self._samples.close()
    self._open(lambda other: step if other == phase else math.inf)

  def write(self, phase: str, step: int, **values: object) -> None:
    """Appends one line to metrics.jsonl, and its numbers to TensorBoard.

    Values are numbers (numpy scalars too), Intervals, None, or dicts of these. NaN and
    infinity, which JSON lacks, become null.
    """
    values = jsonable(values)
    line = {'phase': phase, 'step': step, **values}
    self._metrics.append(_json_line(line))
    self.lines += 1
    self._write_event(phase, step, dict(_scalars(phase, values)))

  def samples(self, samples: Iterable[JsonObject]) -> None:
    """Appends a line to samples.jsonl for each sample, which names phase and step."""
    lines = b''.join(_json_line(jsonable(sample)) for sample in samples)
    self._samples.append(lines)

  def _write_event(self, phase: str, step: int, scalars: Mapping[str, float]) -> None:
    # Not tensorboardX.SummaryWriter: its thread dies on a full disk; then its queue
    # fills up and the training loop hangs without an error.
    proto = tfrecord.tensorboard('proto.event_pb2')
    summary = tfrecord.tensorboard('proto.summary_pb2').Summary
    loop = LOOP_OF.get(phase, phase)
    if loop not in self._events:
      folder = self._workdir / 'tensorboard' / loop
      number = len(list(folder.glob('*')))  # the reader takes files in this order
      self._events[loop] = _File(folder / f'events.out.tfevents.{number:06d}')
      version = proto.Event(wall_time=time.time(), file_version='brain.Event:2')
      # The reader drops the events of earlier files from this step on.
      purge_step = self._resume.get(loop, -1) + 1
      started = proto.SessionLog(status=proto.SessionLog.START)
      purge = proto.Event(wall_time=time.time(), step=purge_step, session_log=started)
      self._events[loop].append(_record(version) + _record(purge))
    value = [summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
    event = proto.Event(wall_time=time.time(), step=step, summary=summary(value=value))
    self._events[loop].append(_record(event))


class _File:
  """A file open for appending. Unbuffered: what was appended survives a kill."""

  def __init__(self, path: Path) -> None:
    self._path = path
    with explained(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = path.open('ab', buffering=0)

  def append(self, content: bytes) -> None:
    rest = memoryview(content)
    with explained(self._path):
      while rest:
        rest = rest[self._file.write(rest) :]

  def close(self) -> None:
    self._file.close()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
  """Turns an OSError about writing `path` into one that says what to do."""
  try:
    yield
  except OSError as error:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = 'make room for it' if full else 'fix that'
    raise OSError(
      f'cannot write {path} ({error.strerror}); {remedy}, then start the same command '
      'again: it resumes from the last checkpoint'
    ) from error


def _drop_unfinished(path: Path, last: Callable[[str], float], least: int = 0) -> int:
  """Rewrites `path` atomically without the lines past the `last` step of their phase.

  Returns how many lines are left. Raises ValueError, and leaves `path` unchanged, if
  these are fewer than `least`.
  """
  left = 0
  if not path.exists():
    _check_left(path, left, least)
    return left
  kept_path = path.with_name(path.name + '.tmp')
  with explained(kept_path), path.open('rb') as lines, kept_path.open('wb') as kept:
    for number, raw in enumerate(lines, start=1):
      line = parse_line(raw)
      if line is None and raw.endswith(b'\n'):
        raise ValueError(
          f'{path}, line {number}: expected a JSON object with a phase and a step, got '
          f'{raw[:40]!r}; delete that line, or choose another --workdir'
        )
      if line is None:  # the last line, half-written when the run was killed
        break
      if line['step'] <= last(line['phase']):
        kept.write(raw.removesuffix(b'\n') + b'\n')
        left += 1
    kept.flush()
    os.fsync(kept.fileno())
  if left < least:
    kept_path.unlink()
  _check_left(path, left, least)
  kept_path.replace(path)
  return left


def _check_left(path: Path, left: int, least: int) -> None:
  if left < least:
    raise ValueError(
      f'{path}: expected {least} lines of the steps up to the checkpoint, got {left}; '
      'restore it, or choose another --workdir'
    )


def jsonable(value: object) -> Any:
  """Returns `value` in JSON's types: no Intervals, numpy types, NaN or infinity."""
  if isinstance(value, Interval):
    value = value._asdict()
  if isinstance(value, Mapping):
    return {name: jsonable(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(item) for item in value]
  if hasattr(value, 'item'):  # numpy's scalars
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_line(line: object) -> bytes:
  # backslashreplace: half a surrogate pair in a model's output must not end the run.
  text = json.dumps(line, ensure_ascii=False, allow_nan=False)
  return text.encode(errors='backslashreplace') + b'\n'


def _scalars(tag: str, value: object) -> Iterator[tuple[str, float]]:
  """Yields the numbers inside `value`, each with its path."""
  if isinstance(value, Mapping):
    for name, item in value.items():
      yield from _scalars(f'{tag}/{name}', item)
  elif isinstance(value, int | float):
    yield tag, value


def _record(event: Any) -> bytes:
  """Returns `event` as a record of its file."""
  return tfrecord.record(event.SerializeToString())
