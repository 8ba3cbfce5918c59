"""Many threads and processes on one store and one model: each answer is right, or refused by name.

Names x, y and z each mean one of two adapters, now this one and now that; "gone" is removed and
added again; nobody ever adds "nobody". What each adapter answers was worked out beforehand, by a
model that holds it alone. So a mix-up, a torn read and a half-written adapter all show as an
answer that nobody could have got.

Each role is a function that a process of its own runs, forked, until its rounds are over:

    writer   replaces, removes and adds
    reader   reads from the disk, compares every number
    server   asks a model with `LiveAdapters`, in several threads, in mixed batches
    victim   replaces one name that is its own, and is killed meanwhile
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, scramble
from vblora_lab.errors import UnknownAdapterError, VBLoRAError
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tuner.formats import BANK_KEY

OPT = CASES["opt"]
WEIGHTS = "adapter_model.safetensors"
MEANINGS = {"x": ("user-0", "user-1"), "y": ("user-2", "user-3"), "z": ("own", "first")}
VICTIM = ("user-0", "own")  # what the victim's name means, in turn
REMOVED, NOBODY, BASE = "gone", "nobody", "__base__"
GONE_MEANS = ("user-3",)
SOURCES = sum(MEANINGS.values(), ())
ROWS = 4  # of a request at most
PATIENCE = 300  # seconds after which a process ends, and its test fails


@torch.no_grad()
def answers_of(adapters: Path) -> dict[str, torch.Tensor]:
    """By adapter, and for the base model: the logits (rows, length, vocabulary) of each alone."""
    tokens, found = OPT.inputs(ROWS), {}
    for name in SOURCES:
        bank = None if name in ("first", "own") else adapters / "first"
        found[name] = lab.from_pretrained(OPT.base(), adapters / name, bank=bank)(tokens).logits
    return {**found, BASE: OPT.base()(tokens).logits}


class Crowd:
    """A store, and what each of its adapters answers.

    Args:
        path: of the store to make.
        adapters: folder of adapters, see `conftest.adapters`.
        answers: of `answers_of`.
    """

    def __init__(self, path: Path, adapters: Path, answers: dict[str, torch.Tensor]) -> None:
        self.path, self.adapters, self.answers = path, adapters, answers
        store = AdapterStore(path)
        store.add(adapters / "first", "keeps-the-bank")
        for name, (first, _) in {**MEANINGS, "v": VICTIM, REMOVED: GONE_MEANS * 2}.items():
            store.add(adapters / first, name)
        store.close()
        self.tokens = OPT.inputs(ROWS)
        self.tensors = {name: load_file(adapters / name / WEIGHTS) for name in SOURCES}
        self.bank = self.tensors["first"][BANK_KEY]

    def meanings(self, name: str) -> tuple[str, ...]:
        """The adapters that a name may stand for."""
        return {**MEANINGS, "v": VICTIM, REMOVED: GONE_MEANS, BASE: (BASE,)}.get(name, ())

    # --- the roles

    def write(self, seed: int, rounds: int) -> None:
        """Replace, remove and add; nothing of it may fail."""
        rng, store = random.Random(seed), AdapterStore(self.path, create=False)
        for _ in range(rounds):
            name = rng.choice([*MEANINGS, REMOVED])
            if name != REMOVED:
                source = self.adapters / rng.choice(MEANINGS[name])
                store.add(source, name, bank=self._bank_for(source), replace=True)
                continue
            try:
                store.remove(name)
            except UnknownAdapterError:  # another writer was first
                store.add(
                    self.adapters / GONE_MEANS[0], name, bank=self.adapters / "first", replace=True
                )

    def _bank_for(self, source: Path) -> Path | None:
        return None if source.name in ("first", "own") else self.adapters / "first"

    def read(self, seed: int, rounds: int) -> None:
        """Read from the disk, and compare every number with those that were added."""
        rng, store = random.Random(seed), AdapterStore(self.path, create=False)
        for _ in range(rounds):
            name = rng.choice([*MEANINGS, REMOVED, NOBODY, "v"])
            try:
                found = store.read(name).tensors
            except UnknownAdapterError as error:
                assert name in (REMOVED, NOBODY) and repr(name) in str(error), error
                continue
            assert name != NOBODY
            assert self.is_meant(found, name), f"{name} is torn"

    def is_meant(self, found: Mapping[str, torch.Tensor], name: str) -> bool:
        """Whether these are all tensors of one of the adapters that a name may stand for."""
        wanted = [{BANK_KEY: self.bank, **self.tensors[each]} for each in self.meanings(name)]
        return any(
            found.keys() == each.keys() and all(torch.equal(found[key], each[key]) for key in each)
            for each in wanted
        )

    def serve(self, seed: int, rounds: int, report: Path, threads: int = 4) -> None:
        """Ask a model in mixed batches, in threads; `report` says how they ended."""
        model = OPT.ours().eval()
        scramble(model)
        source = AdapterStore(self.path, create=False).stored
        live = LiveAdapters(model, source, capacity=self._room_for_few(source))
        ends: Counter[str] = Counter()
        wrong: list[BaseException] = []

        def ask(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            try:
                for _ in range(rounds):
                    ends[self._one_request(model, rng)] += 1
                    self._disturb(live, rng)
            except BaseException as error:
                traceback.print_exc()
                wrong.append(error)

        crowd = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert not wrong, wrong
        assert live.nbytes <= live.capacity
        report.write_text(json.dumps(ends), encoding="utf-8")

    def _room_for_few(self, source: object) -> int:
        """Bytes for both banks and about half of the adapters."""
        live = LiveAdapters(OPT.ours(), source, capacity=2**24)
        for name in MEANINGS:
            live.pin(name)
        return live.nbytes

    def _one_request(self, model: torch.nn.Module, rng: random.Random) -> str:
        names = rng.choices(
            [*MEANINGS, BASE, REMOVED, NOBODY], [4, 4, 4, 3, 2, 1], k=rng.randint(1, ROWS)
        )
        try:
            with torch.no_grad():
                found = model(self.tokens[: len(names)], adapter_names=names).logits
        except VBLoRAError as error:
            no_room = "capacity=" in str(error)
            by_name = any(repr(name) in str(error) for name in (REMOVED, NOBODY) if name in names)
            assert no_room or by_name, error
            return "no room" if no_room else "refused"
        assert NOBODY not in names
        for row, name in enumerate(names):
            right = [self.answers[meaning][row] for meaning in self.meanings(name)]
            near = any(torch.allclose(found[row], each, rtol=1e-4, atol=1e-4) for each in right)
            assert near, f"{name} in {names} got what no adapter of that name gives"
        return "served"

    def _disturb(self, live: LiveAdapters, rng: random.Random) -> None:
        """Let go of an adapter, so that the next request fetches what the store has by then."""
        try:
            live.drop(rng.choice(list(MEANINGS)))
        except VBLoRAError as error:
            assert "is not in memory" in str(error)

    def be_killed(self, ready: int) -> None:
        """Replace the victim's own name, for ever; tell a pipe once it has begun."""
        store = AdapterStore(self.path, create=False)
        for number in count():
            source = self.adapters / VICTIM[number % 2]
            store.add(source, "v", bank=self._bank_for(source), replace=True)
            if number == 0:
                os.write(ready, b"!")


def forked(role: Callable[..., object], *arguments: object) -> int:
    """A process that does this with one thread of PyTorch's; its number. Status 0: all was well."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)
        role(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """The status of a process once it has ended: 0, or what ended it."""
    return os.waitpid(child, 0)[1]
