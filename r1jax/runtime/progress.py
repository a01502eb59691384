"""What a run shows while it runs: a live panel, or plain lines without a terminal.

`diagnose` puts numbers that explain why nothing is learned into words; `Progress` shows
the numbers and says those words. Values go by their names in metrics.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from r1jax.runtime.log import jsonable

if TYPE_CHECKING:
  from rich.console import Console, RenderableType
  from rich.live import Live

STEPS_BETWEEN_REPEATS = 20  # a sentence said at every step is not read
SECONDS_BETWEEN_FRAMES = 0.25
SECONDS_BETWEEN_LINES = 5.0
# Rewards of `r1jax.rewards.rules` that are 0 without the tags.
_FORMAL = {'accuracy', 'format', 'reasoning'}


def diagnose(values: Mapping[str, Any]) -> list[str]:
  """Sentences on what stands in the way of learning, from the values of one RL step."""
  return [sentence for _, sentence in _findings(values)]


def _findings(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Pairs of the metric that gives it away and the sentence about it."""

  def value(name: str) -> float:
    number = values.get(name)
    return float('nan') if number is None else number  # NaN: every comparison fails

  # Not by groups: an advantage may compare the outputs of several prompts.
  flat = value('zero_advantages')
  accuracy = (values.get('rewards') or {}).get('accuracy')
  nothing = flat == 1 and value('reward_spread') == value('reward') == 0
  if nothing and not (accuracy or 0) > 0:
    yield (
      'reward',
      'Every reward of this step is 0, so there is nothing to learn from: make the '
      'problems easier, or train the base model for longer; a checkpoint of the hub '
      'may need another --model.template: chat_tags asks for the form by its own.',
    )
  elif flat > 0.9:
    if accuracy is None:
      why = 'outputs that are compared get the same reward; make the reward finer'
    elif accuracy < 0.05:
      why = 'hardly any output is right; make the problems easier'
    elif accuracy > 0.95:
      why = 'nearly every output is right; make the problems harder'
    else:
      why = (
        'outputs of one problem are too much alike; raise rl.temperature, or make the '
        'reward finer'
      )
    yield (
      'zero_advantages',
      f'The advantage of {flat:.0%} of the outputs is 0, and nothing is learned from '
      f'them: {why}.',
    )
  if value('cut_off') > 0.3:
    yield (
      'cut_off',
      f'{value("cut_off"):.0%} of the outputs are cut off before they end, which '
      'teaches the policy to think less: raise rl.max_length.',
    )
  if value('unparsable') > 0.5 and _FORMAL & (values.get('rewards') or {}).keys():
    yield (
      'unparsable',
      f'{value("unparsable"):.0%} of the outputs are not of the form <think>…</think>'
      '<answer>…</answer> and cannot be right: train the base model for longer, or '
      'give the format reward more weight; a checkpoint of the hub is asked for that '
      'form, with an example, by --model.template chat_tags.',
    )
  clipped = value('clip_up') + value('clip_down')
  if clipped > 0.3:
    yield (
      'clip_up',
      f'{clipped:.0%} of the tokens are clipped, so the policy moves too far between '
      'two rollouts: lower the learning rate, or make fewer updates from a rollout.',
    )
  # With weights in int8 it is expected, and corrected by `importance`.
  if value('drift') > 1e-2 and values.get('importance') is None:
    yield (
      'drift',
      f'Sampler and learner disagree by {value("drift"):.2g} nats on a token: they do '
      'not compute the same policy; compare their precision and their temperature.',
    )
  if value('grad_norm') == 0:
    yield (
      'grad_norm',
      'The gradient is exactly 0, so this step changed nothing: all advantages were 0, '
      'or the mask leaves no token.',
    )
  if value('kl') > 1:
    yield (
      'kl',
      f'The policy is {value("kl"):.2g} nats a token away from its reference and may '
      'have come apart: lower the learning rate, or raise the KL coefficient.',
    )


class Progress:
  """A view of the run on `console` (stdout by default); a context manager.

  On a terminal it is a panel that stays in place; elsewhere a line every few seconds.
  Time left is extrapolated from the steps of the phase seen since its first update,
  which leaves compilation out. `clock` gives seconds.
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
    self._evaluation: dict[str, Any] = {}

  def __enter__(self) -> Self:
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      from rich.live import Live

      # Drawn on update only: a thread that redraws would take its time from the run.
      self._live = Live(console=self._console, auto_refresh=False)
      self._live.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._live is not None:
      self._live.stop()
      self._live = None

  def say(self, sentence: str) -> None:
    """Prints a sentence that stays, above the panel."""
    # In a file one sentence is one line, however narrow the console takes the file for.
    wrap = self._live is None
    self._console.print(sentence, markup=False, highlight=False, soft_wrap=wrap)

  def update(
    self, phase: str, step: int, total: int, values: Mapping[str, Any]
  ) -> None:
    """Shows the values of `step` out of `total`, and says what `diagnose` finds.

    The same values as for `Log.write`. Those of phase 'eval' stay on view beside the
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

  def _say_findings(self, step: int, values: Mapping[str, Any]) -> None:
    for kind, sentence in _findings(values):
      if step - self._said.get(kind, -STEPS_BETWEEN_REPEATS) >= STEPS_BETWEEN_REPEATS:
        self._said[kind] = step
        self.say(f'Step {step}: {sentence}')


def _fields(
  values: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> list[tuple[str, str]]:
  """Name and text of what a step shows, without what was not measured."""
  speed = values.get('time', values).get('tokens_per_second')
  up, down = values.get('clip_up'), values.get('clip_down')
  clipped = None if up is None or down is None else up + down
  pass_at_1 = (evaluation.get('pass_at_1') or {}).get('mean')
  loss = None if 'reward' in values else values.get('loss')  # in RL it tells nothing
  named = [
    ('tokens/s', speed, ',.0f'),
    ('loss', loss, '.3f'),
    ('reward', values.get('reward'), '.3f'),
    ('pass@1', pass_at_1, '.1%'),
    ('length', values.get('length'), '.1f'),
    ('KL', values.get('kl'), '.4f'),
    ('clipped', clipped, '.1%'),
  ]
  return [(name, format(x, spec)) for name, x, spec in named if x is not None]


def _evaluation_fields(values: Mapping[str, Any]) -> list[tuple[str, str]]:
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
  """Time for the remaining steps as h:mm:ss or m:ss; None while the pace is unknown."""
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
