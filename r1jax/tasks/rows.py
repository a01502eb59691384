"""Rows of a data file: JSONL, JSON, CSV or Parquet."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_FIELD = re.compile(r'\{([^{}]+)\}')  # in a template
_SURROGATES = re.compile('[\ud800-\udfff]')
Row = tuple[int, Any]  # number of the line or row in its file, from 1; what it holds


def read(flag: str, path: Path, fields: Sequence[str] = ()) -> list[Row]:
  """Returns the rows of a file, in its order.

  A row should be a JSON object. Whoever takes fields from it has to check that.

  Args:
    flag: that gave the path.
    path: of the file.
    fields: that are needed; of a Parquet file with all of them, only these are read.

  Raises:
    ValueError: the file does not exist, cannot be read, has another format, or a row
      cannot be parsed.
  """
  if path.suffix not in FORMATS:
    raise ValueError(
      f'{flag}: expected a file that ends in {", ".join(FORMATS)}, got {path}'
    )
  try:
    found = _READERS.get(path.suffix)
    rows = list(found(path) if found else _parquet(path, fields))
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


def fields_of(name: str) -> list[str]:
  """Returns the fields that a template names, as in `{a} and {b.0}`, or the name."""
  return _FIELD.findall(name) or [name]


def filled(row: Any, name: str) -> str | None:
  """Returns a field of a row as text, or a template with the texts of its fields.

  In a template, lists of texts and numbers are joined by commas. None if a value is
  something else.

  Raises:
    KeyError: the row has no such field.
  """
  if not _FIELD.search(name):
    return text(field(row, name))
  found = {part: _joined(field(row, part)) for part in fields_of(name)}
  if None in found.values():
    return None
  return _FIELD.sub(lambda match: found[match[1]] or '', name).strip()


def _joined(value: Any) -> str | None:
  texts = [text(part) for part in (value if isinstance(value, list) else [value])]
  known = [part for part in texts if part is not None]
  return ', '.join(known) if len(known) == len(texts) else None


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


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[Row]:
  from pyarrow import parquet  # imported late, since it takes a quarter of a second

  known = set(parquet.read_schema(path).names)
  needed = {name if name in known else name.partition('.')[0] for name in fields}
  # With a column that is missing, all are read, so that the error names them.
  columns = sorted(needed) if needed and needed <= known else None
  yield from enumerate(parquet.read_table(path, columns=columns).to_pylist(), 1)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
  '.jsonl': _jsonl,
  '.json': _json,
  '.csv': _csv,
}
FORMATS = (*_READERS, '.parquet')
