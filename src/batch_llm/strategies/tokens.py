"""What a call will cost in tokens, learned from the calls before it."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

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
_CALLS_IN_A_ROW, _SKIPPED_CALLS = 100, 15


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

    Attributes:
        to_skip: How many answers it need not be told of before the next: fifteen of sixteen, once
            it knows a strategy by a hundred.
        is_asked_each_time: False: calls that go out within a hundredth of a second may pass
            for equal, where the limits are high.
    """

    def __init__(self) -> None:
        self._all = _Experience(None)
        self._by_strategy: dict[int, _Experience] = {}
        self.to_skip: int = 0
        self.is_asked_each_time: bool = False

    def estimate(self, strategy: object, prompt: str) -> float:
        """Tokens that a call will use, input and output together."""
        known = self._by_strategy.get(id(strategy), self._all)
        try:
            length = len(prompt)
        except TypeError:
            length = _length_of(prompt)
        read = known.input_at_no_length + known.input_per_character * length
        return known.output + read if read > 1.0 else known.output + 1.0

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        """Take in what a call has used.

        Args:
            strategy: Made the call.
            prompt: What was asked.
            usage: As in TokenUsage; without input tokens they are estimated.
        """
        own = self._by_strategy.get(id(strategy))
        if own is None:
            own = _Experience(strategy)
            if len(self._by_strategy) >= _MOST_STRATEGIES:
                del self._by_strategy[next(iter(self._by_strategy))]
            self._by_strategy[id(strategy)] = own
        length = _length_of(prompt)
        read, written = usage.get("input_tokens"), usage.get("output_tokens")
        total = usage.get("total_tokens", (read or 0) + (written or 0))
        own.add(length, read, total)
        self.to_skip = _SKIPPED_CALLS if own.calls >= _CALLS_IN_A_ROW else 0
        if own.calls <= _CALLS_FOR_ALL:
            self._all.add(length, read, total)


def _length_of(prompt: Any) -> int:
    """Characters of a prompt; whatever else a strategy takes for one has a length of its own."""
    try:
        return len(prompt)
    except TypeError:
        return len(str(prompt))


class _Experience:
    """The calls of one strategy, which is held so that its identity stays its own, or of all.

    Attributes:
        calls: How many were learned from.
        input_at_no_length: Input tokens of an empty prompt, by the line through the others.
        input_per_character: How many come with each character.
        output: Tokens of a long answer.
    """

    def __init__(self, strategy: object) -> None:
        self._strategy = strategy
        self.calls = 0
        self.input_at_no_length = 0.0
        self.input_per_character = _TOKENS_PER_CHARACTER
        self.output = _UNKNOWN_OUTPUT_TOKENS
        self._mean_length = self._mean_input = 0.0
        self._length_squares = self._length_by_input = 0.0
        self._outputs: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, length: int, read: int | None, total: int) -> None:
        if read is None:
            estimate = self.input_at_no_length + self.input_per_character * length
            read = round(min(total, max(1.0, estimate)))
        else:
            self._add_input(length, read)
        output = float(max(0, total - read))
        self._outputs.append(output)
        insort(self._sorted, output)
        if len(self._outputs) > _LAST_ANSWERS:
            del self._sorted[bisect_left(self._sorted, self._outputs.popleft())]
        self.output = self._sorted[math.ceil(_QUANTILE * len(self._sorted)) - 1]

    def _add_input(self, length: int, read: int) -> None:
        """Welford, "Note on a Method for Calculating Corrected Sums of Squares" (1962)."""
        self.calls += 1
        deviation = length - self._mean_length
        self._mean_length += deviation / self.calls
        self._mean_input += (read - self._mean_input) / self.calls
        self._length_squares += deviation * (length - self._mean_length)
        self._length_by_input += deviation * (read - self._mean_input)
        slope = (self._length_by_input + _SPREAD * _TOKENS_PER_CHARACTER) / (
            self._length_squares + _SPREAD
        )
        self.input_per_character = slope
        self.input_at_no_length = self._mean_input - slope * self._mean_length
