"""Shows a run on screen: a live panel, or plain lines without a terminal.

Values go by their names in metrics.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from r1jax.plain import JsonObject
from r1jax.runtime.diagnose import findings
from r1jax.runtime.log import jsonable

if TYPE_CHECKING:
  from rich.console import Console, RenderableType
  from rich.live import Live

STEPS_BETWEEN_REPEATS = 20  # a sentence printed at every step is not read
SECONDS_BETWEEN_FRAMES = 0.25
SECONDS_BETWEEN_LINES = 5.0


class Progress:
  """Shows the run on `console` (stdout by default); a context manager.

  A terminal gets a panel that stays in place, anything else a line every few seconds.
  The time left is extrapolated from the steps of the phase after its first update,
  which leaves compilation out. `clock` returns seconds.
  """

  def __init__(
    self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
  ) -> None:
    from rich.console import Console

    self._console = console or Console()
    self._clock = clock
    self._live: Live | None = None
    self._start: tuple[str, int, float] | None = None  # phase, step, seconds
    self._shown_at = float('-inf')
    self._said: dict[str, int] = {}
    self._evaluation: JsonObject = {}

  def __enter__(self) -> Self:
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      from rich.live import Live

      # Drawn on update only: a redrawing thread would take time from the run.
      self._live = Live(console=self._console, auto_refresh=False)
      self._live.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._live is not None:
      self._live.stop()
      self._live = None

  def say(self, sentence: str) -> None:
    """Prints a sentence above the panel, where it stays."""
    # In a file, one sentence is one line, whatever width the console assumes.
    wrap = self._live is None
    self._console.print(sentence, markup=False, highlight=False, soft_wrap=wrap)

  def update(self, phase: str, step: int, total: int, values: JsonObject) -> None:
    """Shows the values of `step` out of `total`, and what `diagnose` finds.

    Takes the same values as `Log.write`. Those of phase 'eval' stay visible during the
    steps that follow.
    """
    values = jsonable(values)
    if phase == 'eval':
      self._evaluation = dict(values)
      fields = _evaluation_fields(values)
      self.say(' · '.join([f'eval step {step}', *(f'{n} {v}' for n, v in fields)]))
      return
    now = self._clock()
    if self._start is None or self._start[0] != phase:
      self._start = phase, step, now
      self._shown_at = float('-inf')
      self._said.clear()
    if phase == 'rl':
      self._say_findings(step, values)
    pause = SECONDS_BETWEEN_LINES if self._live is None else SECONDS_BETWEEN_FRAMES
    if now - self._shown_at < pause and step < total:
      return
    self._shown_at = now
    fields = _fields(values, self._evaluation)
    left = _time_left(step, total, self._start[1], now - self._start[2])
    if self._live is None:
      texts = [f'{phase} {step}/{total}', *(f'{n} {v}' for n, v in fields)]
      self.say(' · '.join([*texts, f'{left} left'] if left else texts))
    else:
      self._live.update(_panel(phase, step, total, fields, left), refresh=True)

  def _say_findings(self, step: int, values: JsonObject) -> None:
    for kind, sentence in findings(values):
      if step - self._said.get(kind, -STEPS_BETWEEN_REPEATS) >= STEPS_BETWEEN_REPEATS:
        self._said[kind] = step
        self.say(f'Step {step}: {sentence}')


def _fields(values: JsonObject, evaluation: JsonObject) -> list[tuple[str, str]]:
  """Returns names and texts of a step's values, without those not measured."""
  speed = values.get('time', values).get('tokens_per_second')
  up, down = values.get('clip_up'), values.get('clip_down')
  clipped = None if up is None or down is None else up + down
  pass_at_1 = (evaluation.get('pass_at_1') or {}).get('mean')
  loss = None if 'reward' in values else values.get('loss')  # meaningless in RL
  named = [
    ('tokens/s', speed, ',.0f'),
    ('loss', loss, '.3f'),
    ('reward', values.get('reward'), '.3f'),
    ('accepted', values.get('accepted'), '.1%'),
    ('pass@1', pass_at_1, '.1%'),
    ('length', values.get('length'), '.1f'),
    ('KL', values.get('kl'), '.4f'),
    ('clipped', clipped, '.1%'),
  ]
  return [(name, format(x, spec)) for name, x, spec in named if x is not None]


def _evaluation_fields(values: JsonObject) -> list[tuple[str, str]]:
  k = values.get('k', 'k')
  names = (
    ('pass@1', 'pass_at_1'),
    (f'pass@{k}', 'pass_at_k'),
    (f'cons@{k}', 'consensus'),
  )
  fields = [
    (name, '{mean:.1%} ({low:.1%}–{high:.1%})'.format(**values[key]))
    for name, key in names
    if values.get(key) is not None
  ]
  length = values.get('length')
  if length is None:
    return fields
  return [*fields, ('length', f'{length["mean"]:.1f}')]


def _time_left(step: int, total: int, start: int, seconds: float) -> str | None:
  """Returns the time left as h:mm:ss or m:ss; None while the pace is unknown."""
  if step <= start:
    return None
  left = round(seconds / (step - start) * (total - step))
  hours, minutes = left // 3600, left // 60 % 60
  return (
    f'{hours}:{minutes:02}:{left % 60:02}' if hours else f'{minutes}:{left % 60:02}'
  )


def _panel(
  phase: str, step: int, total: int, fields: list[tuple[str, str]], left: str | None
) -> RenderableType:
  from rich.console import Group
  from rich.progress_bar import ProgressBar
  from rich.table import Table
  from rich.text import Text

  head = Table.grid(padding=(0, 2), expand=True)
  head.add_column(no_wrap=True)
  head.add_column(ratio=1)
  head.add_column(justify='right', no_wrap=True)
  title = Text.assemble((phase, 'bold'), f' {step}/{total}')
  head.add_row(title, ProgressBar(total=total, completed=step), f'{left or "…"} left')
  numbers = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
  for name, text in fields:
    numbers.add_column(name, header_style='dim', min_width=len(text) + 2, no_wrap=True)
  numbers.add_row(*(Text(text, 'bold') for _, text in fields))
  return Group(head, numbers)
