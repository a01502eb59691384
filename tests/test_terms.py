"""Every term of the objective against numbers worked out by hand.

`test_terms_oracle` has TRL's numbers and the papers' formulas in numpy, `test_grpo` the
objective that the terms make up.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import grpo
from r1jax.terms import (
  advantages,
  corrections,
  kls,
  means,
  ratios,
  selections,
  surrogates,
)
from r1jax.terms.inputs import Numbers, Tokens, Totals
from r1jax.terms.selections import Seen

# float32 rounds at 6e-8; a dozen roundings of numbers near 1
TOLERANCE = 1e-6
LN2 = math.log(2)


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def advantage(name, reward, lengths=None, values=None, weights=None, **numbers):
  arrays = (
    None if x is None else jnp.asarray(x, jnp.float32)
    for x in (values, weights, lengths)
  )
  outcomes = grpo.outcomes(jnp.asarray(reward, jnp.float32), *arrays)
  return advantages.ADVANTAGES[name](outcomes, Numbers(**numbers))


def tokens_of(logp, *, old=0.0, sampler=None, ref=None, advantage=1.0, mask=None):
  """One prompt's outputs [1, G, T]; numbers hold for all tokens."""
  logp = jnp.asarray(logp, jnp.float32)
  old = jnp.broadcast_to(jnp.asarray(old, jnp.float32), logp.shape)
  mask = jnp.ones(logp.shape, bool) if mask is None else jnp.asarray(mask, bool)
  others = (
    None if x is None else jnp.broadcast_to(jnp.asarray(x, jnp.float32), logp.shape)
    for x in (sampler, ref)
  )
  sampler, ref = others
  tokens = grpo.tokens_of(
    logp,
    jnp.broadcast_to(jnp.asarray(advantage, jnp.float32), logp.shape[:2]),
    mask,
    old_logp=old,
    sampler_logp=sampler,
    ref_logp=ref,
  )
  return tokens._replace(ratio=ratios.token_ratio(tokens, Numbers()))


# --- advantages ----------------------------------------------------------------------

REWARD = [[1.0, 0, 0, 1], [0, 0, 0, 3]]


def test_group_zscore_divides_by_the_unbiased_std_of_the_group():
  # [1,0,0,1]: mean 1/2, squared deviations 4/4, variance 1/3
  # [0,0,0,3]: mean 3/4, 3 * 9/16 + 81/16 = 27/4, variance 9/4
  first, second = math.sqrt(1 / 3) + 1e-4, 1.5 + 1e-4
  expected = np.array(
    [
      [0.5 / first, -0.5 / first, -0.5 / first, 0.5 / first],
      [-0.75 / second, -0.75 / second, -0.75 / second, 2.25 / second],
    ]
  )
  close(advantage('group_zscore', REWARD), expected)


def test_group_centred_subtracts_the_mean_of_the_group():
  expected = [[0.5, -0.5, -0.5, 0.5], [-0.75, -0.75, -0.75, 2.25]]
  close(advantage('group_centred', REWARD), expected)


def test_leave_one_out_subtracts_the_mean_of_the_others():
  # [1,0,0,1]: the others' mean is 1/3 for a 1, 2/3 for a 0; [0,0,0,3]: 1 or 0
  expected = np.array([[2 / 3, -2 / 3, -2 / 3, 2 / 3], [-1, -1, -1, 3]])
  close(advantage('leave_one_out', REWARD), expected)


def test_batch_whitened_takes_mean_and_std_of_all_outputs():
  # mean 2, deviations -2 -1 0 3, squares 14, variance 14/3
  std = math.sqrt(14 / 3) + 1e-4
  expected = [[-2 / std, -1 / std], [0, 3 / std]]
  close(advantage('batch_whitened', [[0.0, 1], [2, 5]]), expected)


def test_group_centred_batch_std_divides_by_the_std_of_all_rewards():
  # group means 1/2 and 7/2; the std as above
  std = math.sqrt(14 / 3) + 1e-4
  expected = np.array([[-0.5, 0.5], [-1.5, 1.5]]) / std
  close(advantage('group_centred_batch_std', [[0.0, 1], [2, 5]]), expected)


def test_group_centred_whitened_divides_by_the_std_of_what_is_left():
  # -1/2 1/2 -3/2 3/2: mean 0, squares 5, variance 5/3
  std = math.sqrt(5 / 3) + 1e-4
  expected = np.array([[-0.5, 0.5], [-1.5, 1.5]]) / std
  close(advantage('group_centred_whitened', [[0.0, 1], [2, 5]]), expected)


def test_group_relative_to_mean_weighs_a_success_by_how_rare_it_is():
  # one of four: 3/4 / (1/4) = 3; two of four: 1
  got = advantage('group_relative_to_mean', [[1.0, 0, 0, 0], [1, 1, 0, 0]])
  rare, even = 0.25 + 1e-4, 0.5 + 1e-4
  expected = [
    [0.75 / rare, -0.25 / rare, -0.25 / rare, -0.25 / rare],
    [0.5 / even, 0.5 / even, -0.5 / even, -0.5 / even],
  ]
  close(got, expected)


def test_length_weighted_baseline_is_that_of_a_random_token():
  # (3 * 1 + 1 * 0 + 4 * 2) / 8 = 11/8
  got = advantage('length_weighted_baseline', [[1.0, 0, 2]], lengths=[[3, 1, 4]])
  close(got, [[-3 / 8, -11 / 8, 5 / 8]])


def test_pass_at_k_with_all_outputs_is_the_lead_of_the_best():
  got = advantage('pass_at_k', [[0.5, 2.0, 1.25, 0.0]], pass_k=4)
  close(got, [[0, 0.75, 0, 0]])
  close(advantage('pass_at_k', [[1.0, 1, 0, 0]], pass_k=4), [[0, 0, 0, 0]])


@pytest.mark.parametrize('k', [2, 3, 4, 5])
def test_pass_at_k_is_the_mean_over_all_choices_of_others(k):
  reward = np.array([0.5, 2.0, 0.5, -1.0, 3.0])
  expected = []
  for n, own in enumerate(reward):
    others = np.delete(reward, n)
    leads = [max(own - max(c), 0) for c in itertools.combinations(others, k - 1)]
    expected.append(np.mean(leads))
  close(advantage('pass_at_k', reward[None], pass_k=k), [expected])


def test_reward_decoupled_gives_each_reward_the_same_spread():
  # Each reward has the z-score 1, -1 over sqrt(2) in its group, whatever its size:
  # group 1: (z, -z) + 2 (-z, z) = (-z, z); group 2: (z, -z) + 2 (z, -z) = (3z, -3z).
  values = [[[100.0, 0], [0, 1]], [[100, 7], [0, 6]]]
  got = advantage(
    'reward_decoupled', [[0, 0], [0, 0]], values=values, weights=[1.0, 2.0]
  )
  # mean 0, squares 2 + 18 = 20 z^2, variance 20/3 z^2
  expected = np.array([[-1, 1], [3, -3]]) / math.sqrt(20 / 3)
  np.testing.assert_allclose(got, expected, rtol=5e-4)  # 1e-4 is added to stds


@pytest.mark.parametrize('name', advantages.ADVANTAGES)
@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1])
def test_equal_rewards_give_zero_advantage(name, reward):
  # 4 and 16: the mean of 16 times 1.1 is off by rounding.
  for group_size in (4, 16):
    lengths = 1.0 + jnp.arange(2 * group_size).reshape(2, -1)
    got = advantage(name, np.full((2, group_size), reward), lengths=lengths)
    np.testing.assert_array_equal(got, np.zeros((2, group_size)))


@pytest.mark.parametrize(
  'name', sorted(set(advantages.ADVANTAGES) - {'batch_whitened'})
)
def test_equal_rewards_give_zero_advantage_beside_other_groups(name):
  # thirds: sums that round
  reward = [[0.1, 0.1, 0.1, 0.1], [1 / 3, 0, 2 / 3, 1 / 3], [0.7, 0, 0, 0]]
  got = advantage(name, reward)
  assert got[0].tolist() == [0, 0, 0, 0]
  assert np.abs(got[1:]).max() > 0.1


# --- ratios --------------------------------------------------------------------------


def ratio(name):
  """Of one prompt's two outputs, lengths 2 and 0; position 2 must not count."""
  mask = [[[True, True, False], [False, False, False]]]
  tokens = tokens_of(jnp.log(jnp.array([[[2.0, 8, 5], [3, 3, 3]]])), mask=mask)
  return ratios.RATIOS[name](tokens, Numbers())


def test_token_ratio_is_each_tokens_own():
  close(ratio('token')[0, 0, :2], [2, 8])


def test_sequence_ratio_is_the_product_of_the_tokens():
  # 2 * 8 = 16; the empty product is 1
  close(ratio('sequence'), [[[16, 16, 16], [1, 1, 1]]])


def test_geometric_ratio_is_the_geometric_mean_of_the_tokens():
  # sqrt(2 * 8) = 4; the empty mean is 1
  close(ratio('geometric'), [[[4, 4, 4], [1, 1, 1]]])


# --- surrogates ----------------------------------------------------------------------


def gain(name, ratio, advantage, old=-3.0, **numbers):
  """The gain of one token of this ratio, and its slope by the log-prob."""

  def value(logp):
    tokens = tokens_of(logp[None, None, None], old=old, advantage=advantage)
    return surrogates.SURROGATES[name](tokens, Numbers(**numbers))[0, 0, 0]

  return jax.value_and_grad(value)(jnp.float32(old + math.log(ratio)))


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'expected', 'slope'),
  [  # bounds 0.8 and 1.3; the slope of the ratio by logp is the ratio
    (1.1, 2.0, 2.2, 2.2),
    (1.5, 1.0, 1.3, 0.0),  # a good token is not raised further
    (1.5, -1.0, -1.5, -1.5),  # a bad one is always lowered
    (0.5, 1.0, 0.5, 0.5),  # a good one is always raised
    (0.5, -1.0, -0.8, 0.0),  # a bad one is not lowered further
  ],
)
def test_clip_is_the_pessimistic_bound(ratio, advantage, expected, slope):
  got = gain('clip', ratio, advantage, clip_low=0.2, clip_high=0.3)
  close(got, (expected, slope))
  # The second bound of dual clip is far.
  close(gain('dual_clip', ratio, advantage, clip_low=0.2, clip_high=0.3), got)


def test_dual_clip_bounds_the_push_of_a_bad_token():
  close(gain('dual_clip', 5.0, -2.0, ratio_cap=3.0), (-6.0, 0.0))
  close(gain('dual_clip', 2.5, -2.0, ratio_cap=3.0), (-5.0, -5.0))
  close(gain('dual_clip', 5.0, 2.0, clip_high=0.2, ratio_cap=3.0), (2.4, 0.0))


def test_none_is_the_product():
  close(gain('none', 1.5, -2.0), (-3.0, -3.0))


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'weight'),
  [(1.5, 2.0, 1.3), (1.5, -2.0, 1.3), (0.1, -1.0, 0.1), (0.9, 1.0, 0.9)],
)
def test_clipped_weight_keeps_every_tokens_gradient(ratio, advantage, weight):
  value, slope = gain('clipped_weight', ratio, advantage, clip_low=1.0, clip_high=0.3)
  logp = -3.0 + math.log(ratio)
  close((value, slope), (weight * advantage * logp, weight * advantage))


def test_clipped_weight_has_a_lower_bound():
  close(gain('clipped_weight', 0.1, 2.0, clip_low=0.4)[1], 0.6 * 2)


@pytest.mark.parametrize(('ratio', 'advantage'), [(1.0, 2.0), (1.7, 2.0), (1.7, -2.0)])
def test_soft_gate_is_a_sigmoid_whose_slope_on_policy_is_reinforces(ratio, advantage):
  tau = 1.0 if advantage > 0 else 1.05
  gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
  expected = 4 / tau * gate * advantage, 4 * gate * (1 - gate) * ratio * advantage
  close(gain('soft_gate', ratio, advantage), expected)
  if ratio == 1:
    close(expected[1], advantage)


def test_geometric_mean_cuts_each_log_ratio_on_its_bad_side():
  # A > 0 cuts at +0.4: 0.4 and -0.9, mean -0.25. A < 0 cuts at -0.4: 0.8 and -0.4.
  logp = jnp.array([[[0.8, -0.9, 7.0], [0.8, -0.9, 7.0]]])
  tokens = tokens_of(logp, advantage=[[2.0, -2.0]], mask=[[[1, 1, 0], [1, 1, 0]]])
  got = surrogates.geometric_mean(tokens, Numbers(clip_low=0.4, clip_high=0.4))
  close(got[0, :, 0], [2 * math.exp(-0.25), -2 * math.exp(0.2)])


def test_gamma_kernel_is_one_on_policy_and_falls_on_both_sides():
  def weight(log_ratios, advantage):
    """d gain / d logp, over A."""

    def total(logp):
      tokens = tokens_of(logp, advantage=advantage)
      return jnp.sum(surrogates.gamma_kernel(tokens, Numbers()))

    return jax.grad(total)(jnp.array([[log_ratios]]))[0, 0] / advantage

  close(weight([0.3, -0.3], 2.0), [1, 1])
  w = 2.0  # of the output: sqrt(2) twice
  close(weight([LN2 / 2, LN2 / 2], 2.0), 2 * [w**2 * math.exp(3 * (1 - w))])
  close(weight([LN2 / 2, LN2 / 2], -2.0), 2 * [w**3 * math.exp(2 * (1 - w))])


@pytest.mark.parametrize(
  ('old', 'new', 'advantage', 'kept'),
  [  # bounds: 0.1 down, 0.2 up
    (0.3, 0.45, 1.0, True),
    (0.3, 0.55, 1.0, False),
    (0.3, 0.55, -1.0, True),  # moves back
    (0.3, 0.25, -1.0, True),
    (0.3, 0.15, -1.0, False),
    (0.01, 0.15, 1.0, True),  # a ratio of 15 is within: the policy hardly changed
  ],
)
def test_dppo_tv_stops_by_the_difference_of_probabilities(old, new, advantage, kept):
  numbers = {'clip_low': 0.1, 'clip_high': 0.2, 'ratio_cap': 1.6}
  value, slope = gain('dppo_tv', new / old, advantage, old=math.log(old), **numbers)
  weight = kept * min(new / old, 1.6)
  close((value, slope), (weight * advantage * math.log(new), weight * advantage))


@pytest.mark.parametrize(
  ('old', 'new', 'advantage', 'kept'),
  [  # KL of (0.3, 0.7) to (0.5, 0.5) is 0.0823, to (0.2, 0.8) 0.0282
    (0.3, 0.5, 1.0, False),
    (0.3, 0.5, -1.0, True),
    (0.3, 0.2, 1.0, True),
    (0.3, 0.2, -1.0, False),
    (0.3, 0.28, -1.0, True),
  ],
)
def test_dppo_kl_stops_by_the_divergence_of_two_outcomes(old, new, advantage, kept):
  numbers = {'clip_low': 0.02, 'clip_high': 0.08, 'ratio_cap': 20.0}
  _, slope = gain('dppo_kl', new / old, advantage, old=math.log(old), **numbers)
  close(slope, kept * new / old * advantage)


def test_vaco_drops_what_widens_the_gap_of_a_far_output():
  # mean |ratio - 1|: (0.5 + 0.5) / 2 = 0.5 and (0.1 + 0.1) / 2 = 0.1
  logp = jnp.log(jnp.array([[[1.5, 0.5, 9.0], [1.1, 0.9, 9.0]]]))
  tokens = tokens_of(logp, advantage=[[2.0, 2.0]], mask=[[[1, 1, 0], [1, 1, 0]]])
  got = surrogates.vaco(tokens, Numbers(clip_high=0.2))
  close(got[0, :, :2], [[0, 1.0], [2.2, 1.8]])


def test_squared_log_ratio_pulls_back_to_the_old_policy():
  # d/dlogp: 2 * 3 - 2 * 0.5 * ln 2
  got = gain('squared_log_ratio', 2.0, 3.0, log_ratio_coef=0.5)
  close(got, (6 - 0.5 * LN2**2, 6 - LN2))


# --- corrections ---------------------------------------------------------------------


def correction(name, **numbers):
  """pi_old / pi_sampler is 1/2, 4 in one output of 2 tokens, 1/8 in one of 1 token."""
  old = jnp.log(jnp.array([[[0.2, 0.4, 0.3], [0.1, 0.3, 0.3]]]))
  sampler = jnp.log(jnp.array([[[0.4, 0.1, 0.9], [0.8, 0.9, 0.9]]]))
  mask = [[[1, 1, 0], [1, 0, 0]]]
  tokens = tokens_of(old, old=old, sampler=sampler, mask=mask, advantage=[[1.0, -1.0]])
  got = corrections.CORRECTIONS[name](tokens, Numbers(**numbers))
  assert got.shape == old.shape
  return [*got[0, 0, :2].tolist(), float(got[0, 1, 0])]


@pytest.mark.parametrize(
  ('name', 'floor', 'cap', 'expected'),
  [
    ('none', 0.0, 2.0, [1, 1, 1]),
    ('truncate', 0.0, 2.0, [0.5, 2, 0.125]),
    ('mask', 0.0, 2.0, [0.5, 0, 0.125]),
    ('mask', 0.25, 5.0, [0.5, 4, 0]),
    # outputs: 2 and 1/8
    ('sequence_truncate', 0.0, 1.5, [1.5, 1.5, 0.125]),
    ('sequence_mask', 0.0, 3.0, [2, 2, 0.125]),
    ('sequence_mask', 0.25, 1.5, [0, 0, 0]),
    # sqrt(2) and 1/8
    ('geometric_mask', 0.25, 1.5, [1, 1, 0]),
    ('geometric_mask', 0.0, 1.4, [0, 0, 1]),
    # pi_sampler / pi: 1 / sqrt(2) and 8; only the second output has A < 0
    ('off_policy_mask', 0.0, 7.9, [1, 1, 0]),
    ('off_policy_mask', 0.0, 8.1, [1, 1, 1]),
    ('off_policy_mask', 0.0, 0.1, [1, 1, 0]),
  ],
)
def test_corrections_of_tokens_and_outputs(name, floor, cap, expected):
  close(correction(name, importance_floor=floor, importance_cap=cap), expected)


@pytest.mark.parametrize('name', corrections.CORRECTIONS)
def test_nothing_is_corrected_if_the_policy_sampled(name):
  logp = jnp.array([[[-1.0, -2.0]]])
  tokens = tokens_of(logp, old=logp, advantage=-1.0)
  close(corrections.CORRECTIONS[name](tokens, Numbers()), [[[1, 1]]])


# --- KL ------------------------------------------------------------------------------


def test_kl_estimates_of_one_token():
  # policy 1/2, reference 1/4 and back: log-ratios ln 1/2 and ln 2
  logp, ref = jnp.log(jnp.array([[[0.5, 0.25]]])), jnp.log(jnp.array([[[0.25, 0.5]]]))
  tokens = tokens_of(logp, old=logp - LN2, ref=ref)  # a ratio of 2
  expected = {
    'none': [0, 0],
    'k1': [LN2, -LN2],
    'k2': [LN2**2 / 2, LN2**2 / 2],
    # ref/pi - ln(ref/pi) - 1: 1/2 + ln 2 - 1 and 2 - ln 2 - 1
    'k3': [LN2 - 0.5, 1 - LN2],
    'k3_weighted': [2 * (LN2 - 0.5), 2 * (1 - LN2)],
  }
  assert kls.KLS.keys() == expected.keys()
  for name, values in expected.items():
    close(kls.KLS[name](tokens, Numbers())[0, 0], values)


def mean_kl(name, logits, policy, reference):
  """The expected estimate over a vocabulary of 3, drawn from `policy`."""
  logp = jax.nn.log_softmax(logits)
  tokens = tokens_of(logp[None, None], old=jnp.log(policy), ref=jnp.log(reference))
  return jnp.sum(policy * kls.KLS[name](tokens, Numbers())[0, 0])


def test_which_estimates_are_the_kl_and_which_have_its_gradient():
  policy = np.array([0.5, 0.3, 0.2], np.float32)
  reference = np.array([0.2, 0.2, 0.6], np.float32)
  kl = np.sum(policy * np.log(policy / reference))
  # d KL / d logits = pi * (log(pi / ref) - KL)
  slope = policy * (np.log(policy / reference) - kl)
  logits = jnp.log(policy)
  value = {n: mean_kl(n, logits, policy, reference) for n in kls.KLS}
  close([value[n] for n in ('k1', 'k3', 'k3_weighted')], 3 * [kl])
  assert abs(value['k2'] - kl) > 0.004
  for name, expected in (('k2', slope), ('k3_weighted', slope), ('k1', 0 * slope)):
    close(jax.grad(mean_kl, 1)(name, logits, policy, reference), expected)
  k3 = jax.grad(mean_kl, 1)('k3', logits, policy, reference)
  assert np.abs(k3 - slope).max() > 0.01


# --- which tokens learn --------------------------------------------------------------


def seen_of(logp, entropy, advantage, mask):
  return Seen(
    logp=jnp.asarray(logp, jnp.float32),
    entropy=jnp.asarray(entropy, jnp.float32),
    advantage=jnp.asarray(advantage, jnp.float32),
    mask=jnp.asarray(mask, bool),
  )


def test_top_entropy_keeps_the_share_of_the_highest():
  # floor(4 * 0.4) + 1 = 2 of 5 tokens; the highest of all is after an output's end
  mask = [[1, 1, 1], [1, 1, 0]]
  seen = seen_of(np.zeros((2, 3)), [[1, 5, 2], [0, 4, 9]], np.zeros((2, 3)), mask)
  got = selections.top_entropy(seen, Numbers(token_share=0.4))
  assert got.astype(int).tolist() == [[0, 1, 0], [0, 1, 0]]
  everything = selections.top_entropy(seen, Numbers(token_share=1.0))
  assert everything.astype(int).tolist() == mask
  assert selections.every(seen, Numbers()).astype(int).tolist() == mask


def test_top_covariance_is_of_log_prob_and_advantage():
  # means -2 and 0.5 of 4 tokens; covariances 1 * 1.5, 1 * 0.5, -1 * -0.5, -1 * -1.5
  logp, advantage = [[-1, -1, 7], [-3, -3, 7]], [[2, 1, 9], [0, -1, 9]]
  seen = seen_of(logp, np.zeros((2, 3)), advantage, [[1, 1, 0], [1, 1, 0]])
  got = selections.top_covariance(seen, Numbers(token_share=0.5))
  assert got.astype(int).tolist() == [[1, 0, 0], [0, 1, 0]]
  # Clip-Cov: one of the two within 1 to 5 does not learn
  got = selections.without_clip_cov(seen, Numbers(token_share=0.25))
  assert got.sum() == 3
  assert got[0, 1]
  assert got[1, 0]
  none = seen._replace(advantage=seen.advantage / 10)
  assert selections.without_clip_cov(none, Numbers()).sum() == 4


# --- means ---------------------------------------------------------------------------

# Two prompts, two outputs each, of lengths 3, 1, 0 and 2.
MASK = jnp.array([[[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]]], bool)


@pytest.mark.parametrize(
  ('name', 'shares'),
  [  # the weight of one token in outputs of length 3, 1 and 2
    ('outputs', (1 / 12, 1 / 4, 1 / 8)),  # 1 / length / 4 outputs
    ('tokens', (1 / 6, 1 / 6, 1 / 6)),
    ('prompts', (1 / 8, 1 / 8, 1 / 4)),  # 1 / (4 or 2 of the prompt) / 2 prompts
    ('constant', (1 / 20, 1 / 20, 1 / 20)),  # 1 / 5 / 4 outputs
    ('sums', (1 / 4, 1 / 4, 1 / 4)),
  ],
)
def test_weights_of_the_means(name, shares):
  a, b, c = shares
  zeros = jnp.zeros(MASK.shape)
  tokens = grpo.tokens_of(zeros, zeros[..., 0], MASK, old_logp=zeros)
  got = means.MEANS[name](tokens, Numbers(constant_length=5))
  close(got, [[[a, a, a], [b, 0, 0]], [[0, 0, 0], [c, c, 0]]])


def test_totals_count_outputs_tokens_and_prompts():
  assert [float(x) for x in grpo.totals(MASK)] == [4, 6, 2]


def test_totals_of_nothing_do_not_divide_by_zero():
  assert [float(x) for x in grpo.totals(jnp.zeros((1, 2, 3), bool))] == [2, 1, 1]


def test_a_term_sees_nothing_after_an_outputs_end():
  nothing = jnp.full((1, 1, 2), jnp.nan)
  tokens = grpo.tokens_of(
    nothing,
    jnp.ones((1, 1)),
    jnp.zeros((1, 1, 2), bool),
    old_logp=nothing,
    ref_logp=nothing,
    sampler_logp=nothing,
  )
  assert isinstance(tokens, Tokens)
  assert isinstance(tokens.total, Totals)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(tokens))
