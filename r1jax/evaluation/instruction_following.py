"""The four accuracies of IFEval: of prompts and of instructions, strict and loose.

pass@1 is that of prompts, strict. The others come from the measures `rewards.ifeval`.
"""

import json
from collections.abc import Sequence

from r1jax.plain import JsonDict, JsonObject
from r1jax.rewards.ifeval import MEASURES
from r1jax.tasks import Problem

NAMES = tuple(measure.name for measure in MEASURES)


def accuracies(problems: Sequence[Problem], lines: Sequence[JsonObject]) -> JsonDict:
  """Returns the three accuracies besides pass@1 by name; none for another benchmark.

  Args:
    problems: of the benchmark.
    lines: of the outputs, an equal number for each problem; see `benchmarks.Outputs`.
  """
  if NAMES[0] not in lines[0]:
    return {}
  samples = len(lines) // len(problems)
  instructions = sum(len(json.loads(one.truth['answer'])) for one in problems)
  counts = dict.fromkeys(NAMES, samples * instructions) | {NAMES[0]: len(lines)}
  return {
    name: sum(line[name] for line in lines) / count for name, count in counts.items()
  }


def sentence(found: JsonObject) -> str:
  """Returns the four accuracies in the results of IFEval; '' for another benchmark."""
  if NAMES[0] not in found:
    return ''
  shares = {'prompt_strict': found['pass_at_1']['mean']}
  shares |= {name: found[name] for name in NAMES}
  parts = (f'{name.replace("_", " ")} {100 * x:.1f} %' for name, x in shares.items())
  return f'IFEval: {", ".join(parts)}'
