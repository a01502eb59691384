"""How the paper evaluates: sampled, not greedy, and without a system prompt [N]."""

from r1jax.evaluation.evaluate import EvalConfig
from r1jax.sampling.sampler import SamplingConfig

EVALUATE = EvalConfig(
  samples=64,  # 4 to 64 per question; cons@64 needs 64
  draw=SamplingConfig(temperature=0.6, top_p=0.95),
)
MAX_LENGTH = 32_768  # tokens of an output
OUTPUT_BEGINS = '<think>\n'  # prefilled, so that the model does not skip the thoughts
OVERLAP = 10  # training data sharing a 10-gram of words with a test set is removed
