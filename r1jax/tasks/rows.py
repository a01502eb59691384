"""Rows of a data file: JSONL, JSON, CSV or Parquet."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SURROGATES = re.compile('[\ud800-\udfff]')
Row = tuple[int, Any]  # number of the line or row in its file, from 1; what it holds


def read(flag: str, path: Path) -> list[Row]:
  """Returns the rows of a file, in its order.

  A row should be a JSON object. Whoever takes fields from it has to check that.

  Raises:
    ValueError: the file does not exist, cannot be read, has another format, or a row
      cannot be parsed.
  """
  if path.suffix not in _READERS:
    raise ValueError(
      f'{flag}: expected a file that ends in {", ".join(_READERS)}, got {path}'
    )
  try:
    rows = list(_READERS[path.suffix](path))
  except OSError as error:
    raise ValueError(
      f'{flag}: {path} cannot be read ({error.strerror or error}); give the path of a '
      'data file'
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{flag}: {path} is not text in UTF-8 (byte {error.start}); convert it'
    ) from error
  except (ValueError, RecursionError, csv.Error) as error:
    raise ValueError(f'{flag}: {path} cannot be parsed: {error}') from error
  if not rows:
    raise ValueError(f'{flag}: {path} has no rows')
  return rows


def field(row: Any, name: str) -> Any:
  """Returns a field of a row; `a.b.0` goes into objects and lists.

  Raises:
    KeyError: the row has no such field.
  """
  if isinstance(row, dict) and name in row:
    return row[name]
  value = row
  for part in name.split('.'):
    try:
      value = value[int(part) if isinstance(value, list) else part]
    except (LookupError, TypeError, ValueError) as error:
      raise KeyError(name) from error
  return value


def text(value: Any) -> str | None:
  """Returns a text or a finite number as text, stripped; None for anything else.

  A text with half of a surrogate pair is none, as no tokenizer takes it.
  """
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # 27.0
  if isinstance(value, str):
    return None if _SURROGATES.search(value) else value.strip()
  if isinstance(value, float):
    return str(value) if math.isfinite(value) else None
  whole = isinstance(value, int) and not isinstance(value, bool)
  return str(value) if whole else None


def _jsonl(path: Path) -> Iterator[Row]:
  with path.open(encoding='utf-8-sig') as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        try:
          yield number, json.loads(line)
        except ValueError as error:
          raise ValueError(f'line {number} is no JSON ({error})') from error


def _json(path: Path) -> Iterator[Row]:
  rows = json.loads(path.read_text(encoding='utf-8-sig'))
  if not isinstance(rows, list):
    raise ValueError(f'expected a list of rows, got {type(rows).__name__}')
  yield from enumerate(rows, 1)


def _csv(path: Path) -> Iterator[Row]:
  with path.open(encoding='utf-8-sig', newline='') as lines:
    reader = csv.reader(lines, strict=True)
    names = next(reader, [])
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
      raise ValueError(f'the first line has the column {twice[0]!r} twice')
    for row in reader:
      if len(row) != len(names):
        raise ValueError(
          f'line {reader.line_num} has {len(row)} columns, the first line {len(names)}'
        )
      yield reader.line_num, dict(zip(names, row, strict=True))


def _parquet(path: Path) -> Iterator[Row]:
  from pyarrow import parquet  # imported late, since it takes a quarter of a second

  yield from enumerate(parquet.read_table(path).to_pylist(), 1)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
  '.jsonl': _jsonl,
  '.json': _json,
  '.csv': _csv,
  '.parquet': _parquet,
}
