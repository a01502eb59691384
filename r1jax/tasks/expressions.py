"""Arithmetic expressions over + - * as trees: enumerate, write, evaluate, parse.

A tree is an int or a triple (operation, left, right). Countdown and the miniature's
writers use it.
"""

import ast
import functools
import itertools
import operator
import re
from collections.abc import Hashable, Iterator
from fractions import Fraction

Tree = int | tuple  # (operation, left, right), nested

OPERATIONS = {'+': operator.add, '-': operator.sub, '*': operator.mul}
LONGEST_ANSWER = 80  # characters; longer texts are not parsed, they could nest deeply


def value(tree: Tree) -> int:
  """Returns the integer that a tree evaluates to."""
  if isinstance(tree, int):
    return tree
  op, left, right = tree
  return OPERATIONS[op](value(left), value(right))


def numbers(tree: Tree) -> list[int]:
  """Returns the leaves, from left to right."""
  if isinstance(tree, int):
    return [tree]
  return numbers(tree[1]) + numbers(tree[2])


def write(tree: Tree) -> str:
  """Returns the tree as text, with as few parentheses as possible: `(3+5)*2`."""
  if isinstance(tree, int):
    return str(tree)
  op, left, right = tree
  left_text, right_text = write(left), write(right)
  if op == '*' and _is_sum(left):
    left_text = f'({left_text})'
  if op in '*-' and _is_sum(right):
    right_text = f'({right_text})'
  return f'{left_text}{op}{right_text}'


def _is_sum(tree: Tree) -> bool:
  return not isinstance(tree, int) and tree[0] in '+-'


def reduce_once(tree: tuple) -> Tree:
  """Returns the tree after its leftmost operation on two numbers is evaluated."""
  op, left, right = tree
  if isinstance(left, int) and isinstance(right, int):
    return value(tree)
  if not isinstance(left, int):
    return (op, reduce_once(left), right)
  return (op, left, reduce_once(right))


def canonical(tree: Tree) -> Hashable:
  """Returns a key, equal for trees that differ by commuting or regrouping + and *."""
  if isinstance(tree, int):
    return tree
  if tree[0] == '*':
    return ('*', *sorted(map(canonical, _factors(tree)), key=repr))
  plus, minus = _terms(tree)
  return (
    '+',
    tuple(sorted(map(canonical, plus), key=repr)),
    tuple(sorted(map(canonical, minus), key=repr)),
  )


def _factors(tree: Tree) -> list[Tree]:
  if isinstance(tree, int) or tree[0] != '*':
    return [tree]
  return _factors(tree[1]) + _factors(tree[2])


def _terms(tree: Tree) -> tuple[list[Tree], list[Tree]]:
  if isinstance(tree, int) or tree[0] == '*':
    return [tree], []
  (plus, minus), (other_plus, other_minus) = _terms(tree[1]), _terms(tree[2])
  if tree[0] == '-':
    other_plus, other_minus = other_minus, other_plus
  return plus + other_plus, minus + other_minus


@functools.cache
def candidates(leaves: tuple[int, ...]) -> tuple[Tree, ...]:
  """Returns all trees that use each leaf once, without negative intermediate results.

  Trees of the same canonical form appear once. The order is that of a systematic
  search: the first two leaves added, then the third added, subtracted or multiplied;
  then the first two subtracted, and multiplied; then the first and the third leaf. Two
  parts of equal value have one difference, since both orders give 0.
  """
  found: dict[Hashable, Tree] = {}
  for tree in _combine(leaves):
    found.setdefault(canonical(tree), tree)
  return tuple(found.values())


def _combine(parts: tuple[Tree, ...]) -> Iterator[Tree]:
  if len(parts) == 1:
    yield parts[0]
    return
  for i, j in itertools.combinations(range(len(parts)), 2):
    rest = tuple(part for n, part in enumerate(parts) if n not in (i, j))
    for op in OPERATIONS:
      left, right = parts[i], parts[j]
      if op == '-' and value(left) < value(right):
        left, right = right, left
      yield from _combine(((op, left, right), *rest))


def read(text: str) -> Tree | None:
  """Returns the tree of a text, or None if it is not plain + - * arithmetic."""
  text = text.strip()
  if len(text) > LONGEST_ANSWER or not re.fullmatch(r'[0-9+\-*() ]+', text):
    return None
  try:
    return _from_ast(ast.parse(text, mode='eval').body)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def calculated(text: str) -> tuple[list[int], Fraction] | None:
  """Returns the sorted numbers and the exact value of a text with + - * /, or None."""
  text = text.strip()
  if len(text) > LONGEST_ANSWER or not re.fullmatch(r'[0-9+\-*/() ]+', text):
    return None
  try:
    leaves, result = _calculated(ast.parse(text, mode='eval').body)
  except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
    return None
  return sorted(leaves), result


def _calculated(node: ast.expr) -> tuple[list[int], Fraction]:
  exact = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
  }
  match node:
    case ast.Constant(value=int(number)):
      return [number], Fraction(number)
    case ast.BinOp(left=left, op=op, right=right) if type(op) in exact:
      (first, x), (second, y) = _calculated(left), _calculated(right)
      return first + second, exact[type(op)](x, y)
  raise ValueError('not plain + - * / arithmetic')


def _from_ast(node: ast.expr) -> Tree:
  signs = {ast.Add: '+', ast.Sub: '-', ast.Mult: '*'}
  match node:
    case ast.Constant(value=int(number)):
      return number
    case ast.BinOp(left=left, op=op, right=right) if type(op) in signs:
      return (signs[type(op)], _from_ast(left), _from_ast(right))
  raise ValueError('not plain + - * arithmetic')
