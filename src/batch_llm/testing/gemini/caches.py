"""Which caches live, and until when? Nothing is shared: equal creates make two caches."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """One cache as it stands now.

    Attributes:
        name: Full resource name.
        model: Full name of the only model it serves.
        display_name: As given at creation.
        token_count: Tokens of its contents, system instruction and tools.
        create_time: Seconds since the epoch on the emulator's clock.
        update_time: The same, of the last change.
        expire_time: The same, of its end.
        body: The request that created it, contents and all; never sent back.
    """

    name: str
    model: str
    display_name: str | None
    token_count: int
    create_time: float
    update_time: float
    expire_time: float
    body: Mapping[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """The CachedContent as the API shows it."""
        wire: dict[str, Any] = {
            "name": self.name,
            "model": self.model,
            "createTime": _timestamp(self.create_time),
            "updateTime": _timestamp(self.update_time),
            "expireTime": _timestamp(self.expire_time),
            "usageMetadata": {"totalTokenCount": self.token_count},
        }
        if self.display_name is not None:
            wire["displayName"] = self.display_name
        return wire


class CacheStore:
    """All caches of one emulator, oldest first."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._named = 0
        self._records: dict[str, CacheRecord] = {}
        self._positions: dict[str, int] = {}
        self._expired: set[str] = set()

    def live(self, now: float) -> Mapping[str, CacheRecord]:
        """The caches alive at ``now`` by name, read-only."""
        over = [name for name, record in self._records.items() if record.expire_time <= now]
        for name in over:
            self.remove(name, expired=True)
        return MappingProxyType(self._records)

    def get(self, name: str, now: float) -> CacheRecord | None:
        """The cache of that name if it lives."""
        return self.live(now).get(name)

    def has_expired(self, name: str) -> bool:
        """Whether a cache of that name ended by its time, not by a delete."""
        return name in self._expired

    def new_name(self, parent: str) -> str:
        """A name that no cache had before; ``parent`` is empty for the Developer API."""
        self._named += 1
        digest = hashlib.sha256(f"{self._seed}/{self._named}".encode()).digest()
        number = int.from_bytes(digest[:8], "big")
        name = f"{parent}/cachedContents/{number}" if parent else f"cachedContents/{number:016x}"
        self._positions[name] = self._named
        return name

    def put(self, record: CacheRecord) -> None:
        """Store a cache under its name, in the place of what was there."""
        self._records[record.name] = record

    def remove(self, name: str, *, expired: bool = False) -> None:
        """Forget a cache; an expired one is remembered as such."""
        self._records.pop(name, None)
        if expired:
            self._expired.add(name)

    def page(
        self, parent: str, *, after: int, size: int, now: float
    ) -> tuple[list[CacheRecord], int | None]:
        """Up to ``size`` live caches of a parent.

        Args:
            parent: Resource the caches belong to.
            after: Position to go on from, 0 for the start.
            size: Most records to return.
            now: Time to judge expiry by.

        Returns:
            The records, and the position to go on from if there are more.
        """
        prefix = f"{parent}/cachedContents/" if parent else "cachedContents/"
        rest = [
            record
            for name, record in self.live(now).items()
            if name.startswith(prefix) and self._positions[name] > after
        ]
        page = rest[:size]
        return page, self._positions[page[-1].name] if len(rest) > size else None


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
