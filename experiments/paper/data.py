"""Numbers of problems and examples that the paper trained on, by domain [N]."""

from typing import NamedTuple


class Mix(NamedTuple):
  """Counts by domain."""

  math: int
  code: int
  stem: int
  logic: int
  general: int

  @property
  def total(self) -> int:
    """The count over all domains."""
    return sum(self)


RL = Mix(math=26_000, code=17_000, stem=22_000, logic=15_000, general=66_000)
REASONING = RL._replace(general=0)  # verifiable by rules

# For stage 3 and for the students: 626,933 of reasoning, which the paper rounds to
# 600k, and 177,812 others, rounded to 200k.
SFT = Mix(math=395_285, code=211_129, stem=10_124, logic=10_395, general=177_812)
SFT_MEAN_TOKENS = 5_355  # per example

COLD_START_EXAMPLES = 5_000  # ours; the paper says thousands
