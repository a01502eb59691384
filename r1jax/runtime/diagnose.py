"""Diagnoses an RL step: sentences on why it learns nothing, or little.

Values go by their names in metrics.jsonl.
"""

from collections.abc import Callable, Iterator

from r1jax.plain import JsonObject

Value = Callable[[str], float]  # a metric by name; NaN if it was not measured

# Rewards of `r1jax.rewards.rules` that are 0 without the tags.
_NEED_TAGS = {'accuracy', 'format', 'reasoning'}


def diagnose(values: JsonObject) -> list[str]:
  """Returns sentences on what hinders learning, given the metrics of one RL step."""
  return [sentence for _, sentence in findings(values)]


def findings(values: JsonObject) -> Iterator[tuple[str, str]]:
  """Yields a metric and a sentence for everything that hinders learning."""

  def value(name: str) -> float:
    number = values.get(name)
    return float('nan') if number is None else number  # NaN: every comparison fails

  rewards = values.get('rewards') or {}
  yield from _rewards(value, rewards.get('accuracy'))
  yield from _outputs(value, bool(_NEED_TAGS & rewards.keys()))
  # With weights in int8 a drift is expected, and corrected by `importance`.
  yield from _updates(value, small_drift=values.get('importance') is None)


def _rewards(value: Value, accuracy: float | None) -> Iterator[tuple[str, str]]:
  """Yields findings about rewards and advantages."""
  # Not by groups: an advantage may compare the outputs of several prompts.
  flat = value('zero_advantages')
  nothing = flat == 1 and value('reward_spread') == value('reward') == 0
  if nothing and not (accuracy or 0) > 0:
    yield (
      'reward',
      'Every reward of this step is 0, so there is nothing to learn from: make the '
      'problems easier, or train the base model for longer; a checkpoint of the hub '
      'may need another --model.template: chat_boxed asks an instruct model for an '
      'answer in \\boxed{}, and chat_tags shows the tags in an example.',
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


def _outputs(value: Value, tags_needed: bool) -> Iterator[tuple[str, str]]:
  """Yields findings about the texts of the outputs."""
  if value('cut_off') > 0.3:
    yield (
      'cut_off',
      f'{value("cut_off"):.0%} of the outputs are cut off before they end, which '
      'teaches the policy to think less: raise rl.max_length.',
    )
  if value('unparsable') > 0.5 and tags_needed:
    yield (
      'unparsable',
      f'{value("unparsable"):.0%} of the outputs are not of the form that the template '
      'asks for and cannot be right: train the base model for longer, or give the '
      'format reward more weight; a checkpoint of the hub may need another '
      '--model.template: chat_boxed asks an instruct model for an answer in \\boxed{}, '
      'and chat_tags shows the tags in an example.',
    )


def _updates(value: Value, small_drift: bool) -> Iterator[tuple[str, str]]:
  """Yields findings about the updates; `small_drift`: whether it should be small."""
  clipped = value('clip_up') + value('clip_down')
  if clipped > 0.3:
    yield (
      'clip_up',
      f'{clipped:.0%} of the tokens are clipped, so the policy moves too far between '
      'two rollouts: lower the learning rate, or make fewer updates from a rollout.',
    )
  if value('drift') > 1e-2 and small_drift:
    yield (
      'drift',
      f'Sampler and learner disagree by {value("drift"):.2g} nats on a token. '
      'With products in bfloat16 0.01 to 0.02 is rounding; more, or in float32, means '
      'that they do not compute the same policy: compare precision and temperature.',
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
      'have degenerated: lower the learning rate, or raise the KL coefficient.',
    )
