"""Starts a run from random initialization, to train on the synthetic web.

A chain of stages begins with such a model. A student of distillation is another one,
trained on documents of the same kind.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1jax.miniature import corpus
from r1jax.rollout.policy import Policy
from r1jax.stages import artifact, problem_sets
from r1jax.stages.experiment import Origin
from r1jax.stages.fit import fit_stage_mesh
from r1jax.stages.stage import Stage, check_rewards
from r1jax.tasks import REASONING
from r1jax.text import templates
from r1jax.text.tokenizer import Tokenizer, check_vocab_size

TEMPLATE = 'plain'
TOKENIZER_DOCUMENTS = 2000  # documents to train a tokenizer on

Document = Callable[[int], tuple[str, str]]  # index -> question and output


def documents(config: Any) -> Document:
  """Returns document 0, 1, … of the web of a config: fields web, tasks and seed."""
  return functools.partial(corpus.document, config.web, config.tasks, config.seed)


def origin(config: Any) -> Origin:
  """Returns a new model, with the run's tokenizer, or a new one for a new run.

  Args:
    config: of the stage, with the fields web, tasks, vocab_size, model, base and rl.
  """
  problems = problem_sets.new_problems(
    config.tasks,
    config.data_dir,
    max_prompt_length=config.rl.max_prompt_length,
    max_positions=config.base.row_length,
  )
  file = Path(config.workdir) / artifact.TOKENIZER
  run_tokenizer = tokenizer(file, documents(config), TEMPLATE, config.vocab_size)
  problems.check_prompts(run_tokenizer, TEMPLATE)

  def keep(workdir: Path) -> None:
    if not (workdir / file.name).exists():
      run_tokenizer.save(workdir / file.name)

  policy = Policy(config.model, run_tokenizer, TEMPLATE)
  digests = {file.name: run_tokenizer.digest}
  return Origin(policy, problems, digests, keep=keep)


def student(stage: Stage, config: Any) -> tuple[Stage, Document]:
  """Returns the stage with a new student as its policy, and documents to train it on.

  They are other documents of the web that the chain of stages began with.

  Args:
    stage: of the teacher.
    config: of the stage, with the fields student (`distillation.Student`) and mesh.

  Raises:
    MeshError: the student does not divide over the devices.
    ValueError: a prompt is longer than `max_prompt_length`.
  """
  first = stage.parent.ancestor('r1_zero').record['config']
  web, tasks = corpus.config_of(first['web']), corpus.tasks_of(first['tasks'])
  document = functools.partial(corpus.document, web, tasks, stage.seed)
  own, template = stage.policy.tokenizer, stage.policy.template
  if config.student.vocab_size:
    file = stage.run.workdir / artifact.TOKENIZER
    own = tokenizer(file, document, template, config.student.vocab_size)
  stage.problems.check_prompts(own, template)
  policy = Policy(config.student.model, own, template)
  fit_stage_mesh(config, config.mesh, policy.names)
  return dataclasses.replace(stage, policy=policy), document


def tokenizer(
  file: Path, document: Document, template: str, vocab_size: int
) -> Tokenizer:
  """Returns the run's tokenizer; for a new run, trains it on the first documents.

  Args:
    file: of the run's tokenizer.
    document: returns question and output of document 0, 1, …
    template: of the prompts.
    vocab_size: V, at most.
  """
  # Without config.json the folder is new, or not a run's, which `start` rejects.
  if file.exists() and file.with_name('config.json').exists():
    return Tokenizer.load(file)
  pairs = map(document, range(TOKENIZER_DOCUMENTS))
  texts = (
    f'{templates.render(template, question)} {output}' for question, output in pairs
  )
  return Tokenizer.train(texts, vocab_size)


def check(config: Any) -> None:
  """Raises ValueError for settings that can't teach a new model to reason.

  They are a small vocabulary, rows too short for outputs, and rewards or shares of the
  reasoning tasks that are all 0.

  Args:
    config: of the stage, with the fields vocab_size, base, shares, rl and suite, and
      the method `rewards`.
  """
  check_vocab_size(config.vocab_size)
  outputs = max(config.suite.max_length, config.rl.longest)
  longest = config.rl.max_prompt_length + outputs
  if config.base.row_length < longest:
    raise ValueError(
      f'base.row_length: expected at least {longest} = rl.max_prompt_length + '
      f'rl.max_length or suite.max_length, got {config.base.row_length}; at positions '
      'that the base model never saw it writes garbage'
    )
  check_rewards(config.rewards())
  problem_sets.check_shares(config.shares, REASONING)
