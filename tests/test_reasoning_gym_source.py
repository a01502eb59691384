"""What the source of reasoning-gym does with the text of an answer."""

import ast
import collections
import re
from pathlib import Path

import reasoning_gym as library
from reasoning_gym.factory import DATASETS

from r1jax.tasks import reasoning_gym

# Calls that evaluate text, in files of the package. A new one needs a look: refuse the
# data sets whose scorers give it the text of an answer.
EVALUATES = frozenset(
  (
    *(
      'eval',
      'exec',
      'parse_expr',
      'sympify',
      'lambdify',
      'literal_eval',
      '__import__',
    ),
    *('import_module', 'system', 'popen', 'Popen', 'check_output', 'check_call'),
    *('unsafe_load', 'full_load', 'read_pickle', 'run_path', 'run_module'),
  )
)
MODULES = frozenset(('pickle', 'marshal', 'shelve', 'dill', 'subprocess', 'runpy'))
OF_ANSWERS = {
  'algebra/intermediate_integration.py': {'parse_expr': 2},
  'algebra/polynomial_multiplication.py': {'parse_expr': 2},
  'algebra/simple_integration.py': {'parse_expr': 2},
  'algorithmic/binary_matrix.py': {'eval': 1},
  'algorithmic/spiral_matrix.py': {'eval': 1},
  'algorithmic/string_insertion.py': {'eval': 1},
  'games/countdown.py': {'parse_expr': 1},
  'games/n_queens.py': {'eval': 1},
  'games/puzzle24.py': {'parse_expr': 1},
}
OF_THE_LIBRARY = {
  'algorithmic/number_sorting.py': {'eval': 1},  # of the true answer
  'arithmetic/basic_arithmetic.py': {'eval': 1},  # of the expression of a question
  'arithmetic/bitwise_arithmetic.py': {'eval': 2},  # of the expression of a question
  'arithmetic/gsm_symbolic/generators_00_49.py': {'eval': 1},  # of its own fractions
  'arithmetic/gsm_symbolic/generators_50_99.py': {'eval': 1},  # of its own fractions
  'code/codeio.py': {'exec': 1},  # of programs in its files
  'logic/propositional_logic.py': {'parse_expr': 5},  # a parser of its own
}


def called(tree: ast.AST) -> collections.Counter:
  """Counts the calls of `EVALUATES`, and uses of `MODULES`, in a file."""
  found: collections.Counter = collections.Counter()
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
      builtin = name == 'compile' and isinstance(node.func, ast.Name)
      found[name] += name in EVALUATES or builtin
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names = [alias.name for alias in node.names]
      for name in (*names, getattr(node, 'module', None) or ''):
        found[name] += name.partition('.')[0] in MODULES
  return +found


def test_data_sets_whose_scorers_evaluate_answers_are_refused():
  root = Path(library.__file__).parent
  files = {file.relative_to(root): file for file in root.rglob('*.py')}
  found = {
    name.as_posix(): called(ast.parse(x.read_text())) for name, x in files.items()
  }
  assert {n: dict(c) for n, c in found.items() if c} == OF_ANSWERS | OF_THE_LIBRARY
  for dataset, (kind, _) in DATASETS.items():
    file = f'{kind.__module__.removeprefix("reasoning_gym.").replace(".", "/")}.py'
    sandbox = 'needs a sandbox' in reasoning_gym.REFUSED.get(dataset, '')
    assert sandbox == (file in OF_ANSWERS or dataset == 'codeio'), dataset


def reached(kind: type) -> set[str]:
  """The modules of what a scorer and the functions that it calls refer to."""
  names: set[str] = set()
  waiting = [kind.score_answer]  # type: ignore[attr-defined]
  done = set()
  while waiting:
    function = waiting.pop()
    if function in done or not hasattr(function, '__code__'):
      continue
    done.add(function)
    codes = [function.__code__]
    while codes:
      code = codes.pop()
      codes += [x for x in code.co_consts if hasattr(x, 'co_names')]
      for name in code.co_names:
        value = function.__globals__.get(name, getattr(kind, name, None))
        home = getattr(value, '__module__', None) or getattr(value, '__name__', '')
        names.add(str(home))
        waiting += [getattr(value, '__func__', value)] if callable(value) else []
  return names


def test_no_scorer_in_use_hands_an_answer_to_sympy():
  # Most functions of sympy evaluate texts.
  using = {
    dataset
    for dataset, (kind, _) in DATASETS.items()
    if any(re.match(r'sympy\b', name) for name in reached(kind))
  }
  assert using == {
    *('countdown', 'intermediate_integration', 'polynomial_multiplication'),
    *('puzzle24', 'simple_integration'),
  }
  assert using <= reasoning_gym.REFUSED.keys()
