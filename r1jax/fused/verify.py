"""The verifiers of the miniature's tasks on the device: bytes of answers to verdicts.

The same verdicts as `tasks.countdown`, `tasks.arithmetic` and `tasks.equations`, whose
languages are small: sums and products of whole numbers, and `5` or `x=5`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.fused.texts import SPACES, Texts

LONGEST = 80  # bytes of an answer that Countdown reads; see tasks.expressions
LARGEST = 20  # number of a Countdown problem; see CountdownConfig
_DEPTH = LONGEST // 2 + 1  # of parentheses
DIGITS = 9  # of a number that is an answer by itself


class Truth(NamedTuple):
  """What is right, for B outputs."""

  task: jax.Array  # int32 [B], its place in tasks.REASONING
  result: jax.Array  # int32 [B], the target, or the number that is the answer
  numbers: jax.Array  # int32 [B, LARGEST + 1], how often Countdown has each number


class _Frame(NamedTuple):
  """An expression that is being read, [B, depth]."""

  total: jax.Array  # int32, of the finished terms
  product: jax.Array  # int32, of the current term's factors, with its sign


class _State(NamedTuple):
  frame: _Frame
  depth: jax.Array  # int32 [B]
  operand: jax.Array  # bool [B], whether a number or ( must follow
  number: jax.Array  # int32 [B], being read
  digits: jax.Array  # int32 [B], of it; 0: none is being read
  leading: jax.Array  # bool [B], whether it begins with 0
  used: jax.Array  # int32 [B, LARGEST + 1], how often each number was read
  wrong: jax.Array  # bool [B]


def right(answer: Texts, truth: Truth) -> jax.Array:
  """Returns which answers are right, bool [B]; answers are without outer whitespace."""
  number, plain = _number(answer, with_x=False)
  solution, solved = _number(answer, with_x=True)
  verdicts = [
    reaches(answer, truth.numbers, truth.result),
    solved & (solution == truth.result),
    plain & (number == truth.result),
  ]
  return jnp.stack(verdicts)[truth.task, jnp.arange(len(truth.task))]


def _number(answer: Texts, with_x: bool) -> tuple[jax.Array, jax.Array]:
  """Returns the number that an answer is, and whether it is one.

  It has 1 to 9 digits, after `x =` with any whitespace if `with_x`.
  """
  text, length = answer.bytes, answer.lengths
  place = jnp.arange(text.shape[1])[None]
  inside = place < length[:, None]
  digit = inside & (text >= ord('0')) & (text <= ord('9'))
  begin = jnp.where(digit.any(1), jnp.argmax(digit, axis=1), text.shape[1])
  before = place < begin[:, None]
  number, valid = jnp.zeros(len(text), jnp.int32), (digit | before | ~inside).all(1)
  count = digit.sum(1)
  for n in range(DIGITS):
    value = jnp.take_along_axis(
      text, jnp.minimum(begin + n, text.shape[1] - 1)[:, None], axis=1
    )[:, 0].astype(jnp.int32)
    number = jnp.where(n < count, 10 * number + value - ord('0'), number)
  valid &= (count >= 1) & (count <= DIGITS) & (length <= text.shape[1])
  if not with_x:
    return number, valid & (begin == 0)
  signs = before & ~jnp.isin(text, jnp.array(SPACES, jnp.uint8))
  x, equals = before & (text == ord('x')), before & (text == ord('='))
  prefix = (
    (text[:, 0] == ord('x'))
    & (signs.sum(1) == 2)
    & (x.sum(1) == 1)
    & (equals.sum(1) == 1)
  )
  return number, valid & ((begin == 0) | prefix)


def reaches(answer: Texts, numbers: jax.Array, target: jax.Array) -> jax.Array:
  """Returns which answers use each number once and evaluate to the target, bool [B].

  An answer is an expression of + - * and parentheses, without signs before a number.
  """
  rows = len(answer.lengths)
  zeros, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
  frame = _Frame(
    jnp.zeros((rows, _DEPTH), jnp.int32), jnp.ones((rows, _DEPTH), jnp.int32)
  )
  used = jnp.zeros((rows, LARGEST + 1), jnp.int32)
  state = _State(frame, zeros, ~no, zeros, zeros, no, used, no)
  # One space more, after which the last number has ended.
  text = jnp.pad(answer.bytes[:, :LONGEST], ((0, 0), (0, 1)))
  text = jnp.where(text == 0, jnp.uint8(ord(' ')), text)
  state, _ = jax.lax.scan(lambda state, byte: (_read(state, byte), None), state, text.T)
  value = state.frame.total[:, 0] + state.frame.product[:, 0]
  zero_byte = (answer.bytes == 0) & (
    jnp.arange(answer.bytes.shape[1])[None] < answer.lengths[:, None]
  )
  ended = ~state.operand & (state.depth == 0) & (answer.lengths <= LONGEST)
  counted = (state.used == numbers).all(1)
  return ended & counted & ~state.wrong & ~zero_byte.any(1) & (value == target)


def _read(state: _State, byte: jax.Array) -> _State:
  """Returns the state after one more byte [B] of each answer."""
  digit = (byte >= ord('0')) & (byte <= ord('9'))
  state = _end_number(state, ~digit & (state.digits > 0))
  state = _digit(state, digit, byte.astype(jnp.int32) - ord('0'))
  state = _operator(state, byte)
  state = _parenthesis(state, byte)
  known = jnp.isin(byte, jnp.array(list(b'0123456789+-*() '), jnp.uint8))
  return state._replace(wrong=state.wrong | ~known)


def _digit(state: _State, digit: jax.Array, value: jax.Array) -> _State:
  first = digit & (state.digits == 0)
  number = jnp.where(first, value, jnp.minimum(10 * state.number + value, LARGEST + 1))
  return state._replace(
    number=jnp.where(digit, number, state.number),
    digits=jnp.where(digit, state.digits + 1, state.digits),
    leading=jnp.where(first, value == 0, state.leading),
    wrong=state.wrong | (first & ~state.operand),
  )


def _end_number(state: _State, ends: jax.Array) -> _State:
  """A number has been read: it is a factor. 05 is none, and one too large is wrong."""
  number = jnp.minimum(state.number, LARGEST)
  wrong = (state.number > LARGEST) | (state.leading & (state.digits > 1))
  used = state.used.at[jnp.arange(len(ends)), number].add(ends)
  return _times(state, number, ends)._replace(
    digits=jnp.where(ends, 0, state.digits),
    used=used,
    operand=state.operand & ~ends,
    wrong=state.wrong | (ends & wrong),
  )


def _times(state: _State, factor: jax.Array, where: jax.Array) -> _State:
  """Multiplies the current term."""
  row = jnp.arange(len(where))
  by = jnp.where(where, factor, 1)
  product = state.frame.product.at[row, state.depth].multiply(by)
  return state._replace(frame=state.frame._replace(product=product))


def _operator(state: _State, byte: jax.Array) -> _State:
  row, depth = jnp.arange(len(byte)), state.depth
  minus = byte == ord('-')
  adds = minus | (byte == ord('+'))
  operator = adds | (byte == ord('*'))
  total, product = state.frame.total[row, depth], state.frame.product[row, depth]
  frame = _Frame(
    state.frame.total.at[row, depth].set(jnp.where(adds, total + product, total)),
    state.frame.product.at[row, depth].set(
      jnp.where(adds, jnp.where(minus, -1, 1), product)
    ),
  )
  return state._replace(
    frame=frame,
    operand=state.operand | operator,
    wrong=state.wrong | (operator & state.operand),
  )


def _parenthesis(state: _State, byte: jax.Array) -> _State:
  row, frame = jnp.arange(len(byte)), state.frame
  opens, closes = byte == ord('('), byte == ord(')')
  wrong = (opens & ~state.operand) | (closes & (state.operand | (state.depth == 0)))
  value = frame.total[row, state.depth] + frame.product[row, state.depth]
  depth = jnp.clip(state.depth + opens - (closes & ~wrong), 0, _DEPTH - 1)
  frame = _Frame(
    frame.total.at[row, depth].set(jnp.where(opens, 0, frame.total[row, depth])),
    frame.product.at[row, depth].set(jnp.where(opens, 1, frame.product[row, depth])),
  )
  state = state._replace(
    frame=frame,
    depth=depth,
    operand=state.operand & ~closes,
    wrong=state.wrong | wrong,
  )
  return _times(state, value, closes & ~wrong)
