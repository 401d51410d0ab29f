"""What is simulated: the provider's nature, the pipeline's settings, and what goes wrong."""

import dataclasses
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, cast

from batch_llm.core.config import ProcessorConfig

Manner = Literal["good", "slow", "raises", "cancels", "hangs", "stubborn"]
"""How the caller's own code behaves, now and then: ``cancels`` raises a CancelledError of its
own, ``hangs`` waits for ever, ``stubborn`` does too and ignores its cancellation for a while."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long calls take.

    Attributes:
        median_seconds: Half of the calls are faster.
        spread: Of ``lognormal`` the standard deviation of the logarithm (0.5 is usual, 1.0
            has a long tail), of ``uniform`` the largest deviation as a share of the median.
            0 makes all calls equally long.
        shape: The distribution.
    """

    median_seconds: float = 1.0
    spread: float = 0.0
    shape: Literal["lognormal", "uniform"] = "lognormal"

    def draw(self, random: Random) -> float:
        """Seconds of one call."""
        if self.shape == "uniform":
            return self.median_seconds * max(0.0, 1 + self.spread * random.uniform(-1, 1))
        return self.median_seconds * math.exp(self.spread * random.gauss(0, 1))


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What the provider lets through; a refused call costs nothing of it.

    Attributes:
        requests_per_minute: None for no limit.
        tokens_per_minute: Input tokens; None for no limit.
        kind: A ``bucket`` starts full and is refilled evenly; a ``window`` counts anew from
            each full window of the provider's clock on.
        period_seconds: What an idle bucket saves up, or the length of the window.
        hints: Whether refusals say how long to wait.

    Raises:
        ValueError: A number is not above 0.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    kind: Literal["bucket", "window"] = "bucket"
    period_seconds: float = 60.0
    hints: bool = True

    def __post_init__(self) -> None:
        """Refuse a quota that lets nothing through."""
        for name in ("requests_per_minute", "tokens_per_minute", "period_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 (got {value!r}); pass None for no limit")


@dataclass(frozen=True, kw_only=True)
class QuotaChange:
    """From some moment on, another quota holds; None for none.

    Attributes:
        at_seconds: The moment, from the start of the simulation.
        quota: What holds from then on.
    """

    at_seconds: float
    quota: Quota | None


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A time in which the provider serves nobody.

    Attributes:
        start_seconds: When it begins, from the start of the simulation.
        seconds: How long it lasts.
        kind: Whether calls are ``refused``, or ``hang`` until it is over and then break.
    """

    start_seconds: float
    seconds: float
    kind: Literal["refused", "hang"] = "refused"


CALL_FAULTS = (
    "connection",
    "server",
    "client",
    "malformed",
    "rate_limit",
    "timeout",
    "stuck",
    "stubborn",
    "cancelled",
    "wrong_shape",
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of calls that go wrong, each from 0.0 to 1.0, together at most 1.0.

    Attributes:
        connection: The connection breaks.
        server: Status 503.
        client: Status 400, which no repetition mends.
        malformed: An answer that cannot be parsed, but is billed.
        rate_limit: Status 429, for no reason that a quota knows, without a hint.
        timeout: The provider's client gives up waiting.
        stuck: No answer, until the call is cancelled.
        stubborn: The same, and the call ignores its cancellation for ``stubborn_seconds``.
        cancelled: A CancelledError that nobody asked for.
        wrong_shape: ``execute`` returns something else than (output, usage).
        hooks: Share of a strategy's ``prepare``, ``on_error`` and ``cleanup`` calls that raise
            or hang; counted apart.
        stubborn_seconds: For how long a stubborn call goes on after its cancellation.

    Raises:
        ValueError: The shares are no shares of one whole.
    """

    connection: float = 0.0
    server: float = 0.0
    client: float = 0.0
    malformed: float = 0.0
    rate_limit: float = 0.0
    timeout: float = 0.0
    stuck: float = 0.0
    stubborn: float = 0.0
    cancelled: float = 0.0
    wrong_shape: float = 0.0
    hooks: float = 0.0
    stubborn_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot be shares of calls."""
        shares = [getattr(self, name) for name in CALL_FAULTS]
        if min(*shares, self.hooks) < 0 or max(sum(shares), self.hooks) > 1:
            raise ValueError(
                f"faults must be shares from 0.0 to 1.0, together at most 1.0 (got {self}); "
                "lower some of them"
            )

    def draw(self, random: Random) -> str:
        """The name of the fault of one call, or ``answer``."""
        rest = random.random()
        for name in CALL_FAULTS:
            rest -= getattr(self, name)
            if rest < 0:
                return name
        return "answer"


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a provider is like.

    Attributes:
        latency: Of calls that are not refused.
        refusal_seconds: Of calls that are.
        quota: What holds at first; None for no limit.
        quota_changes: What holds later.
        faults: Shares of calls that go wrong.
        outages: When nobody is served.
        cache_ttl_seconds: Life of the cache that ``prepare`` makes; a call that finds it
            expired fails, and ``on_error`` makes it anew. None for no cache.
        input_tokens: Billed for each prompt, on average.
        output_tokens: Billed for each answer, on average.
    """

    latency: Latency = Latency()
    refusal_seconds: float = 0.05
    quota: Quota | None = None
    quota_changes: tuple[QuotaChange, ...] = ()
    faults: Faults = Faults()
    outages: tuple[Outage, ...] = ()
    cache_ttl_seconds: float | None = None
    input_tokens: int = 100
    output_tokens: int = 50


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The caller's code around the calls; None and () leave it out.

    Attributes:
        middlewares: One middleware for each.
        observers: One observer for each.
        post_processor: Gets each result.
        progress_callback: Told how far the run is; an async one.
        rate_limit_strategy: Takes the place of the one made from the config.
        classifier: Takes the place of the default; when it misbehaves, it raises.
        skipped: Share of the items that the first middleware skips.
        misbehaving: Share of all these calls that misbehave in their manner.
    """

    middlewares: tuple[Manner, ...] = ()
    observers: tuple[Manner, ...] = ()
    post_processor: Manner | None = None
    progress_callback: Manner | None = None
    rate_limit_strategy: Manner | None = None
    classifier: Manner | None = None
    skipped: float = 0.0
    misbehaving: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """How a run is ended before its time.

    Attributes:
        at_seconds: When, from the start of the simulation.
        kind: ``cancel`` cancels ``process_all()``, ``cleanup`` calls that method, and
            ``keyboard`` lets the next call raise a KeyboardInterrupt.
    """

    at_seconds: float
    kind: Literal["cancel", "cleanup", "keyboard"] = "cancel"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One pipeline and its provider.

    Attributes:
        items: How many items there are.
        config: The processor's own settings.
        service: What the provider is like.
        strategies: How many strategy instances the items share; None gives each its own.
        late_items: How many of the items are added while the run goes on.
        late_gap_seconds: Time between two of those.
        added_items: Items beyond ``items``, added by the post-processor.
        equal_ids: Whether items have their ids in threes.
        streaming: Whether the results are taken one by one instead of all at the end.
        consumer_seconds: What a streaming consumer does with each result.
        hooks: The caller's code around the calls.
        interruption: How the run is ended before its time; None lets it end.
    """

    items: int = 10
    config: ProcessorConfig = field(default_factory=ProcessorConfig)
    service: Service = Service()
    strategies: int | None = 1
    late_items: int = 0
    late_gap_seconds: float = 1.0
    added_items: int = 0
    equal_ids: bool = False
    streaming: bool = False
    consumer_seconds: float = 0.0
    hooks: Hooks = Hooks()
    interruption: Interruption | None = None

    def __str__(self) -> str:
        """The Python expression for it, without what is left at its default."""
        return _expression(self)


def _expression(value: Any) -> str:
    if isinstance(value, tuple):
        entries = cast("tuple[Any, ...]", value)
        return f"({''.join(f'{_expression(entry)}, ' for entry in entries)})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    kind: Any = type(value)
    required = {f.name for f in dataclasses.fields(kind) if _is_required(f)}
    default = kind(**{name: getattr(value, name) for name in required})
    told = [
        f"{f.name}={_expression(getattr(value, f.name))}"
        for f in dataclasses.fields(kind)
        if f.name in required or getattr(value, f.name) != getattr(default, f.name)
    ]
    return f"{kind.__name__}({', '.join(told)})"


def _is_required(given: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return given.default is missing and given.default_factory is missing
