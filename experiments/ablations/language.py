"""Costs and benefits of the language-consistency reward.

R1's second stage adds it to the accuracy. The paper reports that it lowers the accuracy
a little and makes thoughts readable (Nature version).
"""

import dataclasses

from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_evaluations

ABLATION = ablation.Ablation(
  question='What does the language reward cost and buy?',
  variants={
    'with': lambda base: dataclasses.replace(base, language_weight=1.0),
    'without': lambda base: dataclasses.replace(base, language_weight=0.0),
  },
  figures=(
    PASS_AT_1,
    VariantFigure(
      'Language of the thoughts over RL steps',
      'The share of words in the language asked for, on validation problems.',
      over_evaluations('rewards.language'),
      share=True,
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/language'))
