"""The figures of the reports: which curves in which charts, with which captions.

Accuracy, length and self-checks are the curves of the DeepSeek-R1 paper; the smaller
charts help to find out why a run learned well or badly.
"""

from typing import NamedTuple

from r1jax.report.chart import CurveFigure
from r1jax.report.curves import base_line, evaluated, steps
from r1jax.report.reader import TITLES, PipelineFiles, RunFiles, number

RL_STAGES = ('r1_zero', 'reasoning_rl', 'final_rl')


class FigureGroup(NamedTuple):
  """Figures of one size; `kind` is a class of the style sheet."""

  kind: str
  width: int
  height: int
  figures: list[CurveFigure]


def run_figures(run: RunFiles) -> list[FigureGroup]:
  """Returns the figures of one run, in groups from large to small."""
  return [
    FigureGroup('wide', 860, 340, [_accuracy(run)]),
    FigureGroup('pair', 400, 250, _outputs(run)),
    FigureGroup('small', 300, 190, _training(run)),
  ]


def pipeline_figures(pipeline: PipelineFiles) -> list[CurveFigure]:
  """Returns accuracy, length and language of each RL stage that has started.

  The charts of one quantity have the same scale.
  """
  runs = {name: run for name in RL_STAGES if (run := _rl_run(pipeline, name))}
  lengths = [number(line, 'length') or 0.0 for run in runs.values() for line in run.rl]
  return [
    figure
    for name, run in runs.items()
    for figure in _stage_figures(TITLES[name], run, max(lengths))
  ]


def missing_stages(pipeline: PipelineFiles) -> list[str]:
  """Returns the titles of the RL stages without any RL step so far."""
  return [TITLES[name] for name in RL_STAGES if not _rl_run(pipeline, name)]


def _rl_run(pipeline: PipelineFiles, name: str) -> RunFiles | None:
  stage = pipeline.stages.get(name)
  return stage.run if stage and stage.run and stage.run.rl else None


def _stage_figures(title: str, run: RunFiles, longest: float) -> list[CurveFigure]:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  accuracy = [
    base_line(run.evaluations, 'pass_at_1')._replace(name='start'),
    evaluated(run.evaluations, 'consensus', f'cons@{k}', 'two'),
    evaluated(run.evaluations, 'pass_at_1', 'pass@1', 'one'),
  ]
  language = [{**line, **(line.get('rewards') or {})} for line in run.rl]
  return [
    CurveFigure(f'{title}: accuracy', '', accuracy, share=True, highest=1.0),
    CurveFigure(f'{title}: tokens', '', steps(run.rl, 'length'), highest=longest),
    CurveFigure(
      f'{title}: language', '', steps(language, 'language'), share=True, highest=1.0
    ),
  ]


def _accuracy(run: RunFiles) -> CurveFigure:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  return CurveFigure(
    'Accuracy on validation problems',
    f'Share of problems solved by one output (pass@1) and by the most frequent answer '
    f'of {k} (cons@{k}); bands are 95\u202f% intervals over problems. The '
    'dashed line is pass@1 of the base model. Look at the distance to that line, and '
    'whether the vote stays ahead of the single output.',
    [
      base_line(run.evaluations, 'pass_at_1'),
      evaluated(run.evaluations, 'consensus', f'cons@{k}', 'two'),
      evaluated(run.evaluations, 'pass_at_1', 'pass@1', 'one'),
    ],
    share=True,
  )


def _outputs(run: RunFiles) -> list[CurveFigure]:
  return [
    CurveFigure(
      'Mean length of an output',
      'Tokens, over the outputs that the model is trained on; the dashed line is the '
      'base model on validation problems. If no reward asks for length, a rise means '
      'that longer thinking pays.',
      [*steps(run.rl, 'length'), base_line(run.evaluations, 'length')],
    ),
    CurveFigure(
      'Outputs with a self-check',
      'Share of outputs with a reflective word (“wait”, “check”, …); the dashed line '
      'is the base model. Look whether it moves together with the length.',
      [*steps(run.rl, 'reflective'), base_line(run.evaluations, 'reflective')],
      share=True,
    ),
  ]


def _training(run: RunFiles) -> list[CurveFigure]:
  return [
    CurveFigure(
      'Reward',
      'Mean over the outputs of a step. It should rise; if it rises while accuracy '
      'does not, the reward is being gamed.',
      steps(run.rl, 'reward'),
    ),
    CurveFigure(
      'KL to the reference',
      'Nats per token, of both models at the temperature of the rollout. It grows '
      'slowly from 0 and drops where the reference is replaced; a jump means that the '
      'policy has diverged.',
      steps(run.rl, 'kl'),
    ),
    CurveFigure(
      'Entropy',
      'Nats per token, of the policy at the temperature of the rollout. A fall to 0 '
      'ends exploration: all outputs of a group become the same.',
      steps(run.rl, 'entropy'),
    ),
    CurveFigure(
      'Clipped tokens',
      'Share of tokens whose gradient the clip range stops, above and below. A few per '
      'cent are fine; more means that steps are too large.',
      [
        *steps(run.rl, 'clip_up', 'up'),
        *steps(run.rl, 'clip_down', 'down', 'two'),
      ],
      share=True,
    ),
    CurveFigure(
      'Gradient norm',
      'Before clipping. Spikes announce trouble a few steps before the reward does.',
      steps(run.rl, 'grad_norm'),
    ),
    CurveFigure(
      'Loss of base training',
      'Nats per token, before reinforcement learning. It should be flat at the end.',
      steps(run.base, 'loss'),
    ),
  ]
