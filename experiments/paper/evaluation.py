"""How the paper evaluates: sampled, not greedy, and without a system prompt [N]."""

from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages.evaluation import EvalConfig

EVALUATE = EvalConfig(
  samples=64,  # 4 to 64 a question; cons@64 needs them all
  draw=SamplingConfig(temperature=0.6, top_p=0.95),
)
MAX_LENGTH = 32_768  # tokens of an output
OUTPUT_BEGINS = '<think>\n'  # written for the model, so that it thinks at all
OVERLAP = 10  # words in a row that training data must not share with a test set
