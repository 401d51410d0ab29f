"""What a call will cost in tokens, learned from the calls before it."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

_TOKENS_PER_CHARACTER = 0.25
_SPREAD = 10_000.0
# The mean answer in ShareGPT, as reported by Kwon et al., "Efficient Memory Management for
# Large Language Model Serving with PagedAttention" (2023).
_UNKNOWN_OUTPUT_TOKENS = 338.0
_QUANTILE = 0.95
_LAST_ANSWERS = 100
_MOST_STRATEGIES = 100
# What the others go by until they have answered needs no more of each.
_CALLS_FOR_ALL = 20


class LearnedTokenEstimator:
    """Input from the prompt's length, output as long as 95 % of the answers before it.

    It learns for each strategy instance by itself, and goes by all of them together where
    one has not answered yet. Before anything was answered, four characters count as a token
    of input, and an answer as 338 tokens.

    * Input: a straight line through the prompts' lengths and their tokens, by least squares,
      so that what a strategy adds to each prompt counts too. It leans towards four characters
      a token while the prompts are all of a length (ridge regression, Hoerl and Kennard, 1970).
    * Output: the nearest rank among the last 100 answers (definition 1 of Hyndman and Fan,
      "Sample Quantiles in Statistical Packages", 1996). What is booked too much comes back
      with the answer; what is booked too little has been overdrawn by then, hence a high one.

    It keeps a few kilobytes for each of the 100 strategies that came last.
    """

    def __init__(self) -> None:
        self._all = _Experience()
        self._by_strategy: dict[int, tuple[object, _Experience]] = {}

    def estimate(self, strategy: object, prompt: str) -> float:
        """Tokens that a call will use, input and output together."""
        _, experience = self._by_strategy.get(id(strategy), (None, self._all))
        return experience.input_tokens(len(prompt)) + experience.output_tokens()

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        """Take in what a call has used.

        Args:
            strategy: Made the call.
            prompt: What was asked.
            usage: As in TokenUsage; without input tokens they are estimated.
        """
        _, own = self._by_strategy.get(id(strategy), (None, None))
        if own is None:
            own = _Experience()
            if len(self._by_strategy) >= _MOST_STRATEGIES:
                del self._by_strategy[next(iter(self._by_strategy))]
            # With the strategy itself, so that its identity stays its own.
            self._by_strategy[id(strategy)] = strategy, own
        read, written = usage.get("input_tokens"), usage.get("output_tokens")
        total = usage.get("total_tokens", (read or 0) + (written or 0))
        own.add(len(prompt), read, total)
        if own.calls <= _CALLS_FOR_ALL:
            self._all.add(len(prompt), read, total)


class _Experience:
    """The calls of one strategy, or of all."""

    def __init__(self) -> None:
        self.calls = 0
        self._mean_length = self._mean_input = 0.0
        self._length_squares = self._length_by_input = 0.0
        self._outputs: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, length: int, read: int | None, total: int) -> None:
        if read is None:
            read = round(min(total, self.input_tokens(length)))
        else:
            self._add_input(length, read)
        output = float(max(0, total - read))
        self._outputs.append(output)
        insort(self._sorted, output)
        if len(self._outputs) > _LAST_ANSWERS:
            del self._sorted[bisect_left(self._sorted, self._outputs.popleft())]

    def _add_input(self, length: int, read: int) -> None:
        """Welford, "Note on a Method for Calculating Corrected Sums of Squares" (1962)."""
        self.calls += 1
        deviation = length - self._mean_length
        self._mean_length += deviation / self.calls
        self._mean_input += (read - self._mean_input) / self.calls
        self._length_squares += deviation * (length - self._mean_length)
        self._length_by_input += deviation * (read - self._mean_input)

    def input_tokens(self, length: int) -> float:
        slope = (self._length_by_input + _SPREAD * _TOKENS_PER_CHARACTER) / (
            self._length_squares + _SPREAD
        )
        return max(1.0, self._mean_input + slope * (length - self._mean_length))

    def output_tokens(self) -> float:
        if not self._sorted:
            return _UNKNOWN_OUTPUT_TOKENS
        return self._sorted[math.ceil(_QUANTILE * len(self._sorted)) - 1]
