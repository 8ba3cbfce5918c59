"""Which adapters are in memory, and which go when there is no room for one more."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator

from vblora_lab.errors import ConfigError
from vblora_lab.serving.live_choices import Choices
from vblora_lab.tables import in_bytes
from vblora_lab.tuner.merging import uninterrupted


class Memory:
    """Adapters by name, within a number of bytes. Every call takes the same time however many.

    (But for those that look past many adapters that a batch uses right now.)

    Args:
        capacity: bytes that they and their banks may take.

    Attributes:
        nbytes: that they take now.
        evicted: how many went so far to make room.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = self.evicted = 0
        self._pinned: dict[str, Choices] = {}
        self._others: OrderedDict[str, Choices] = OrderedDict()  # least recently used first
        self._users: Counter[int] = Counter()  # of each bank

    def __contains__(self, name: object) -> bool:
        return name in self._pinned or name in self._others

    def __len__(self) -> int:
        return len(self._pinned) + len(self._others)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._pinned, *self._others])

    @property
    def pinned(self) -> frozenset[str]:
        """Names of those that stay."""
        return frozenset(self._pinned)

    def use(self, name: str) -> Choices | None:
        """An adapter, which is the one used last from now on; None if it isn't there."""
        if name in self._others:
            self._others.move_to_end(name)
            return self._others[name]
        return self._pinned.get(name)

    def put(self, name: str, choices: Choices, in_use: Collection[str] = ()) -> None:
        """Add an adapter or replace the one of its name, which stays pinned if it was.

        Args:
            name: of the adapter.
            choices: of the adapter.
            in_use: names of those that must stay.

        Raises:
            ConfigError: there is no room, whatever goes; nothing went.
        """
        before = self.use(name)
        gone = self._going(name, choices, before, in_use)
        with uninterrupted():
            for other in gone:
                self.drop(other)
            self.evicted += len(gone)
            if before is not None:
                self._count(before, -1)
            (self._pinned if name in self._pinned else self._others)[name] = choices
            self._count(choices, 1)

    def _going(
        self, name: str, choices: Choices, before: Choices | None, in_use: Collection[str]
    ) -> list[str]:
        """Names of those that must go, or `ConfigError`."""
        needed = self.nbytes + choices.nbytes
        needed += 0 if self._users[id(choices.bank)] else choices.bank.nbytes
        gone, left = [], Counter[int]()  # users that each bank has lost

        def without(each: Choices) -> int:
            bank = id(each.bank)
            left[bank] += 1
            last = left[bank] == self._users[bank] and each.bank is not choices.bank
            return each.nbytes + (each.bank.nbytes if last else 0)

        if before is not None:
            needed -= without(before)
        for other, each in self._others.items():
            if needed <= self.capacity:
                break
            if other != name and other not in in_use:
                gone.append(other)
                needed -= without(each)
        if needed > self.capacity:
            raise ConfigError(
                f"capacity={self.capacity}: {name!r} needs {in_bytes(choices.nbytes)} and its "
                f"bank {in_bytes(choices.bank.nbytes)}, beside what is pinned or in use. Use a "
                "larger capacity or a smaller batch, or unpin some."
            )
        return gone

    def drop(self, name: str) -> None:
        """Let go of an adapter that is there, pinned or not."""
        with uninterrupted():
            holder = self._pinned if name in self._pinned else self._others
            self._count(holder.pop(name), -1)

    def pin(self, name: str) -> None:
        """Keep an adapter that is there until it is dropped or unpinned."""
        if name in self._others:  # (in both for a moment, never in neither)
            self._pinned[name] = self._others[name]
            del self._others[name]

    def unpin(self, name: str) -> None:
        """Let an adapter that is there go when room is needed."""
        if name in self._pinned:
            self._others[name] = self._pinned[name]
            del self._pinned[name]

    def _count(self, choices: Choices, users: int) -> None:
        """One user more (1) or less (-1) of its own bytes and of its bank's."""
        bank = id(choices.bank)
        others = self._users[bank] - (users < 0)
        self.nbytes += users * (choices.nbytes + (0 if others else choices.bank.nbytes))
        self._users[bank] += users
        if not self._users[bank]:
            del self._users[bank]
