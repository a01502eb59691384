"""The preference reward at the end of the last stage, against from its first step.

R1 uses it for the last 400 of 1,700 steps only, since more leads to reward hacking
(Nature version): the preference model's reward keeps rising while the true preference
does not. Here the true preference is known: the judge can rate any output.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import final_rl
from experiments.ablations import ablation
from r1jax.miniature import baseline
from r1jax.report.ablation import PASS_AT_1, VariantFigure
from r1jax.report.chart import running_mean
from r1jax.runtime.log import parse_line
from r1jax.stages import artifact, problem_sets
from r1jax.tasks import REASONING, Problem

WINDOW = 5  # steps; about eight outputs to instructions are rated per step


def late(base: Any) -> Any:
  """Returns the base, with an output of every problem logged."""
  return ablation.with_rl(base, logged_samples=base.rl.prompts_per_step)


def early(base: Any) -> Any:
  """Returns `late` with instructions and the preference reward from the first step."""
  return dataclasses.replace(late(base), general_after=0)


def judged(run: Path) -> list[tuple[int, float]]:
  """Returns the judge's preference for outputs to instructions, by step of a run."""
  return _by_step(
    run, lambda problem, sample: baseline.preference(problem, sample['output'])
  )


def modelled(run: Path) -> list[tuple[int, float]]:
  """Returns the preference model's reward of the same outputs, by step of a run."""
  return _by_step(run, lambda _, sample: sample['rewards']['preference'])


def _by_step(
  run: Path, value: Callable[[Problem, Mapping[str, Any]], float]
) -> list[tuple[int, float]]:
  """Returns the running mean of a value of outputs to instructions, by step."""
  stage = artifact.load(run)
  found = problem_sets.problems_of(stage, stage.record['config']['data_dir'])
  (instructions,) = found.train[len(REASONING) :]
  problems = {problem.id: problem for problem in instructions}
  values: dict[int, list[float]] = {}
  for raw in (run / 'samples.jsonl').read_bytes().splitlines():
    sample = parse_line(raw)
    if sample and sample['phase'] == 'rl' and sample['problem'] in problems:
      number = value(problems[sample['problem']], sample)
      values.setdefault(sample['step'], []).append(number)
  means = running_mean([sum(x) / len(x) for x in values.values()], WINDOW)
  return [(step, x) for step, x in zip(values, means, strict=True) if x is not None]


ABLATION = ablation.Ablation(
  question='Does the preference reward from the first step on lead to hacking?',
  variants={'late': late, 'early': early},
  launch=final_rl.FINAL_RL.launch,
  parent='rejection_sft',
  figures=(
    VariantFigure(
      'The preference model’s reward over RL steps',
      'Of outputs to instructions, from -1 to 1, the running mean over '
      f'{WINDOW} steps of about eight outputs each. If it keeps rising where the '
      'judge below does not, that is a sign of hacking; the curves are not tested.',
      modelled,
    ),
    VariantFigure(
      'The judge’s preference over RL steps',
      'The share of the same outputs that the judge prefers to fixed answers.',
      judged,
      share=True,
    ),
    PASS_AT_1,
  ),
)

if __name__ == '__main__':
  ablation.main(
    ABLATION,
    ablation.Command(
      parent='runs/rejection_sft',
      workdir='runs/ablations/preference_hacking',
      base=final_rl.FinalRL(),
    ),
  )
