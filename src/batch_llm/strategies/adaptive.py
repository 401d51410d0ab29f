"""Finding a provider's limit and staying at it, told nothing but what was let in and refused.

A quota shows itself in one way only: it refuses. Between two refusals it has let in exactly
what it grants, since it was spent at both ends. So the calls let in since the last
throttling, divided by the time, are the best estimate of the quota there is, for a bucket as
for a window; and a pace just below it is where to stay. What else follows from reasons:

* Refusals come within moments, answers after seconds. One throttling therefore is an
  *episode*: everybody waits a moment until all refusals of calls under way are in, and one
  cut follows. Calls begun before the cut prove nothing about the new pace.
* Few calls since the last cut are weak evidence, and somebody else may share the quota. So
  the last hundred calls are remembered, and forgotten when what follows is three standard
  deviations (of a Poisson process) off: then the quota has changed. More than was expected
  weighs more than less: what was let in was granted for certain, what was not may have been
  bad luck.
* The pace grows only while it is what holds the calls back, and only by calls that were
  answered: gently at first and faster the longer nothing is refused (the concave, then convex
  growth of CUBIC, RFC 9438), so that a grown quota is found soon and a constant one is
  overrun by little. All of it is counted in calls, not in seconds: a slow quota is probed no
  more often, per call, than a fast one.
* A provider may cap the calls in flight instead. Then it refuses when many are, whatever the
  pace: the numbers in flight at refusals and at answers hardly overlap. Their separation is
  measured as the probability that a refused call found more in flight than an answered one
  (Mann and Whitney, 1947), and a high one lowers the number in flight instead of the pace.
* A quota may be one of tokens. Then it is the large calls that are refused. Where refused
  calls are larger than others, by the same test with its normal approximation, a call counts
  by its tokens: it waits the longer before it goes out, the larger it is.
* When nothing is let in any more, the pace is not to blame. Single calls probe, at growing
  intervals, and the first that is let in restores it. Nor is it where less than a call a
  minute is let in: no slower pace is tried.

The idea of one cut per episode and of growth by evidence only is that of TCP congestion
control (Jacobson, "Congestion Avoidance and Control", 1988).
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from batch_llm.strategies._http import Allowance
from batch_llm.strategies.budget import Budget
from batch_llm.strategies.pace import Pace, Sizes

FIRST_WAVE = 20
"""Calls that go out before any was answered."""
PATIENCE_SECONDS = 1.0
"""A call that was not refused for so long counts as let in."""
SETTLE_SECONDS = 0.15
"""How long after a refusal those of other calls under way may come in."""

_EMPTY_EPISODES = 2
_FEW_REFUSALS, _FEW_ANSWERS = 6, 10
_SEPARATED, _STILL_SEPARATED = 0.95, 0.8
_CAP_ANSWERS, _BLAMELESS = 10, 1.1
_FIRST_PROBE_SECONDS, _LONGEST_PROBE_SECONDS = 1.0, 30.0
_LONGEST_HINT_SECONDS = 600.0


# Not frozen, which would take four times as long to make.
@dataclass(slots=True)
class Admission:
    """A call that was let out.

    Attributes:
        number: Its place among all calls of the run, from 1.
        at: Loop time at which it went out.
        others: Calls in flight at that time.
        tokens: What it was expected to cost; 0 where nobody asked.
        all_tokens: The same of all calls of the run until then, its own included.
    """

    number: int
    at: float
    others: int
    tokens: float = 0.0
    all_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class AdaptiveStatistics:
    """What was learned of the provider's limit.

    Attributes:
        calls_per_second: The pace; infinite where nothing was refused for it.
        tokens_per_second: The same in tokens; infinite where calls are not refused for theirs.
        max_in_flight: Calls that may be in flight at once.
        episodes: Throttlings so far.
        is_blocked: Whether only single calls go out, to see whether any is let in.
    """

    calls_per_second: float
    tokens_per_second: float
    max_in_flight: int
    episodes: int
    is_blocked: bool


def refusal_wait_seconds(hint_seconds: float | None, *, refusals: int, random: float) -> float:
    """How long a refused call waits before it stands in line again.

    Args:
        hint_seconds: What the provider asked for, None if it named nothing.
        refusals: How often the call was refused so far.
        random: A random number in [0, 1).

    Returns:
        The hint, or 1, 2, 4, ... 30 seconds times a factor in [0.5, 1).
    """
    if hint_seconds is not None:
        return hint_seconds
    return min(2.0 ** min(refusals - 1, 5), _LONGEST_PROBE_SECONDS) * (0.5 + random / 2)


class AdaptiveLimit:
    """The pace and the number in flight of one provider, learned from what it refuses.

    Pure arithmetic on the loop times that it is given.

    Args:
        max_workers: The most calls that are ever in flight.
        now: Loop time of the run's start.

    Attributes:
        is_engaged: Whether anything was ever refused, or said to be limited.
        is_blocked: Whether only single calls go out, to see whether any is let in.
    """

    def __init__(self, max_workers: int, now: float) -> None:
        self._max_workers = max_workers
        self._begun = now
        self._number = 0
        self._in_flight = 0
        self._is_open = max_workers <= FIRST_WAVE
        self.is_engaged: bool = False
        self._episodes = 0
        self._pace = Pace()
        self._sizes = Sizes()
        self._tokens = 0.0
        self._budgets: dict[bool, Budget] = {}
        self._believes_budgets = True
        self._cap = max_workers
        self._refused_at: float | None = None
        self._hint_seconds = 0.0
        self._empty_episodes = 0
        self.is_blocked: bool = False
        self._probe: Admission | None = None
        self._probe_at = 0.0
        self._probe_seconds = _FIRST_PROBE_SECONDS
        self._others_at_answers: deque[int] = deque(maxlen=100)
        self._others_at_refusals: deque[int] = deque(maxlen=16)
        self._marked_at, self._mark_number, self._mark_tokens = now, 0, 0.0
        self._refusals = self._answers_at_cap = 0
        self._refused_tokens = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether any number of calls may go out, and none need be told of."""
        return self._is_open and not self.is_engaged

    @property
    def is_capped(self) -> bool:
        """Whether fewer calls may be in flight than there are workers."""
        return self._cap < self._max_workers

    @property
    def paused_until(self) -> float | None:
        """Loop time of the next probe; None while calls go out, a probe included."""
        return self._probe_at if self.is_blocked and self._probe is None else None

    def statistics(self) -> AdaptiveStatistics:
        """What was learned so far."""
        pace = self._pace.per_second
        tokens = pace * self._sizes.mean if self._sizes.matter else math.inf
        return AdaptiveStatistics(pace, tokens, self._cap, self._episodes, self.is_blocked)

    def engage(self, *, answered: int, in_flight: int) -> None:
        """Begin to count; something was refused, or said to be limited.

        Args:
            answered: Calls that were answered so far.
            in_flight: Calls in flight.
        """
        if self.is_idle:
            self._number = answered + in_flight + 1
            self._in_flight = in_flight
        self.is_engaged = self._is_open = True

    def ready_at(self, now: float, tokens: float = 0.0) -> float:
        """Loop time from which the next call may go out; infinite until one ends.

        Args:
            now: Loop time.
            tokens: What the call is expected to cost.
        """
        if self.is_idle:
            return -math.inf
        if self._refused_at is not None:
            settled_at = self._refused_at + SETTLE_SECONDS
            if now < settled_at:
                return settled_at
            self._conclude(now)
        if self.is_blocked:
            probed_at = self._probe_until()
            if self._probe is None or now < probed_at:
                return probed_at
            self._unblock(now)
        if self._in_flight >= self._cap:
            return math.inf
        if not self._is_open and self._number >= FIRST_WAVE:
            if now < self._begun + PATIENCE_SECONDS:
                return self._begun + PATIENCE_SECONDS
            self._is_open = True
        learned_at = self._pace.ready_at(self._sizes.weight_of(tokens))
        return self._told_ready_at(now, tokens, learned_at) if self._budgets else learned_at

    def _told_ready_at(self, now: float, tokens: float, learned_at: float) -> float:
        """As the budgets allow; what was learned counts where little is left, or was refused."""
        told_at, has_plenty = -math.inf, self._believes_budgets
        for of_tokens, budget in self._budgets.items():
            amount, spent = (tokens, self._tokens) if of_tokens else (1.0, float(self._number))
            at = budget.ready_at(now, amount=amount, spent=spent, last_at=self._pace.last_at)
            told_at = max(told_at, at)
            has_plenty = has_plenty and budget.has_plenty(now, amount=amount, spent=spent)
        return told_at if has_plenty else max(learned_at, told_at)

    def _probe_until(self) -> float:
        return self._probe_at if self._probe is None else self._probe.at + PATIENCE_SECONDS

    def start(self, now: float, tokens: float = 0.0) -> Admission:
        """A call goes out that is expected to cost so many tokens."""
        self._number += 1
        self._tokens += tokens
        admission = Admission(self._number, now, self._in_flight, tokens, self._tokens)
        self._in_flight += 1
        self._pace.start(now, self._sizes.weight_of(tokens))
        if self.is_blocked:
            self._probe = admission
        return admission

    def end(self) -> None:
        """A call ended, however it did."""
        self._in_flight -= 1

    def answered(self, admission: Admission | None, now: float) -> None:
        """A call that ended was let in."""
        self._is_open = True
        if admission is None:
            return
        if admission is self._probe:
            self._unblock(now)
        self._others_at_answers.append(admission.others)
        self._sizes.let_in(admission.tokens)
        if admission.number > self._mark_number and self._refused_at is None:
            self._grow(admission)

    def told(
        self,
        allowances: Sequence[Allowance],
        admission: Admission | None,
        now: float,
        *,
        is_refusal: bool = False,
    ) -> None:
        """A response says what is left.

        Args:
            allowances: What it says.
            admission: Its call; None if it went out before the limit was engaged.
            now: Loop time.
            is_refusal: Whether the call was refused. If enough was left for it, there is a
                limit that responses do not tell of.
        """
        at, number, tokens = now, self._number - self._in_flight, self._tokens
        if admission is not None:
            at, number, tokens = admission.at, admission.number, admission.all_tokens
        if is_refusal:
            cost = {True: 1.0 if admission is None else admission.tokens, False: 1.0}
            enough = [each.remaining >= cost[each.of_tokens] for each in allowances]
            self._believes_budgets = self._believes_budgets and not all(enough)
        for allowance in allowances:
            budget = self._budgets.setdefault(allowance.of_tokens, Budget())
            budget.tell(allowance, at, tokens if allowance.of_tokens else float(number))

    def _grow(self, admission: Admission) -> None:
        self._pace.answered()
        if self.is_capped and admission.others >= self._cap - 1:
            self._answers_at_cap += 1
            if self._answers_at_cap >= _CAP_ANSWERS * self._cap:
                self._cap += 1
                self._answers_at_cap = 0

    def refused(self, admission: Admission | None, now: float, hint_seconds: float | None) -> None:
        """A call that ended was refused.

        Args:
            admission: The call; None if it went out before the limit was engaged.
            now: Loop time.
            hint_seconds: What the provider asked to wait, None if it named nothing.
        """
        if admission is not None:
            self._others_at_refusals.append(admission.others)
            self._sizes.refused(admission.tokens)
            if admission is self._probe:
                self._probe_again(now, hint_seconds)
                return
        if (0 if admission is None else admission.number) <= self._mark_number and self._episodes:
            return
        self._refusals += 1
        self._refused_tokens += 0.0 if admission is None else admission.tokens
        for budget in self._budgets.values():
            # It was not spent.
            budget.forget()
        if self._refused_at is None and not self.is_blocked:
            self._refused_at = now
            self._hint_seconds = hint_seconds or 0.0

    def _probe_again(self, now: float, hint_seconds: float | None) -> None:
        self._probe = None
        self._probe_seconds = min(2 * self._probe_seconds, _LONGEST_PROBE_SECONDS)
        hint = min(hint_seconds or 0.0, _LONGEST_HINT_SECONDS)
        self._probe_at = now + max(hint, self._probe_seconds)

    def _conclude(self, now: float) -> None:
        """All refusals of an episode are in: cut once, or stop."""
        assert self._refused_at is not None
        cut_at, self._refused_at = self._refused_at, None
        let_in = self._number - self._mark_number - self._refusals
        self._episodes += 1
        self._empty_episodes = 0 if let_in > 0 else self._empty_episodes + 1
        if self._empty_episodes >= _EMPTY_EPISODES:
            self.is_blocked = True
            self._probe_at = now + (
                min(self._hint_seconds, _LONGEST_HINT_SECONDS) or self._probe_seconds
            )
            return
        if self._is_cap_to_blame():
            self._cut_cap()
        else:
            self._cut_pace(let_in, cut_at - self._marked_at)
        self._pace.resume(cut_at)
        self._mark(cut_at)

    def _is_cap_to_blame(self) -> bool:
        refusals, answers = self._others_at_refusals, self._others_at_answers
        if len(refusals) < _FEW_REFUSALS or len(answers) < _FEW_ANSWERS:
            return False
        above = sum(
            (answered < refused) + (answered == refused) / 2
            for refused in refusals
            for answered in answers
        )
        needed = _SEPARATED if self._cap == self._max_workers else _STILL_SEPARATED
        return above >= needed * len(refusals) * len(answers)

    def _cut_cap(self) -> None:
        refused = sorted(self._others_at_refusals)[len(self._others_at_refusals) // 4]
        below = self._cap if self._cap == self._max_workers else self._cap - 1
        self._cap = max(1, min(below, refused))
        self._pace.raise_to(_BLAMELESS)

    def _cut_pace(self, let_in: int, seconds: float) -> None:
        if self._pace.per_second == math.inf:
            self._others_at_answers.clear()
            self._others_at_refusals.clear()
        tokens = self._tokens - self._mark_tokens - self._refused_tokens
        self._pace.cut(tokens / self._sizes.mean if self._sizes.matter else let_in, seconds)
        self._sizes.judge()

    def _unblock(self, now: float) -> None:
        if self._probe_seconds > _FIRST_PROBE_SECONDS:
            # An outage says nothing about the quota. A wait that was no longer than the provider
            # had said does: it is the rest of the time for which the calls before it were granted.
            self._mark(now)
        self.is_blocked, self._probe = False, None
        self._probe_seconds, self._empty_episodes = _FIRST_PROBE_SECONDS, 0
        self._pace.resume(-math.inf)

    def _mark(self, at: float) -> None:
        """Count what comes from now on for the next estimate."""
        self._marked_at, self._mark_number, self._mark_tokens = at, self._number, self._tokens
        self._refusals = self._answers_at_cap = 0
        self._refused_tokens = 0.0
        self._pace.hold()
