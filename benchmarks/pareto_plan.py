"""What is tried, in which order: methods on a curve, each at its best rates; controls; changes.

A search of rates climbs a ladder, 1, 2, 5, 10, 20 and so on: it begins with two rungs, goes on
where the loss falls, and ends when the best rung has a neighbour tried on both sides, or after
`RUNGS` of them. It is the same for every method and control, with seed 0. Then each is trained with
other seeds at its best rung.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

from pareto_trial import Trial

RUNGS = 5  # trials of a search of rates
LADDER = tuple(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5))
SEARCH_SEED = 0
SEEDS = {"curve": (1, 2, 3), "controls": (1, 2, 3, 4, 5), "changes": (1, 2)}
# When a study's search and its first, second, ... final seed have their turn.
SEARCH_TURNS = {"curve": 0, "controls": 0, "changes": 3.5}
TURNS = {"curve": (1, 3, 5), "controls": (2, 6, 7, 9, 10), "changes": (4, 8)}
Done = Mapping[str, Mapping[str, Any]]  # outcomes by the key of their trial
Study = Literal["curve", "controls", "changes"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all trials of a base have in common."""

    base: str
    task: str
    steps: int
    batch_size: int
    validation: int | None = None


# What a base's turns are put off by, so that the larger model comes first.
DELAY = {"mini-opt": 2.5}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method of some size, or a control: one point of a curve, once its rates are found.

    Attributes:
        name, family: as shown; points of a family are joined by a line.
        start: the rung on which its search begins.
        like: the entry whose rates it takes, times ``times``; it is not searched for itself.
        texts: how many texts the final trials write.
    """

    study: Study
    family: str
    name: str
    kind: str
    fields: Mapping[str, Any]
    start: float = 1e-2
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ratio: float = 10.0
    like: str = ""
    times: int = 0
    texts: int = 0

    def trial(self, setting: Setting, rate: float, seed: int) -> Trial:
        searched = seed == SEARCH_SEED
        return Trial(
            **dataclasses.asdict(setting),
            name=self.name,
            kind=self.kind,
            fields=self.fields,
            rate=rate,
            seed=seed,
            ratio=self.ratio,
            change=self.change,
            texts=0 if searched else self.texts,
        )


def vb(
    r: int, vectors: int, length: int, targets: Any = "all-linear", **more: Any
) -> dict[str, Any]:
    return {
        "r": r,
        "num_vectors": vectors,
        "vector_length": length,
        "target_modules": targets,
        "save_only_topk_weights": True,
        "task_type": "CAUSAL_LM",
        **more,
    }


def lora(r: int, targets: Any = "all-linear") -> dict[str, Any]:
    return {"r": r, "lora_alpha": r, "target_modules": targets, "task_type": "CAUSAL_LM"}


QV = ["q_proj", "v_proj"]
WHERE = {"all-linear": "", "q_proj v_proj": ", q and v", "v_proj": ", v"}


def vb_entry(r: int, vectors: int, length: int, targets: Any = "all-linear", **more: Any) -> Entry:
    where = WHERE[targets if isinstance(targets, str) else " ".join(targets)]
    name = f"VB-LoRA r={r}, {vectors}x{length}{where}"
    fields = vb(r, vectors, length, targets)
    return Entry("curve", "VB-LoRA" + where, name, "VB-LoRA", fields, **more)


def lora_entry(r: int, targets: Any = "all-linear", **more: Any) -> Entry:
    where = WHERE[targets if isinstance(targets, str) else " ".join(targets)]
    return Entry("curve", "LoRA" + where, f"LoRA r={r}{where}", "LoRA", lora(r, targets), **more)


def others(norms: list[str], feedforward: list[str], frequencies: int) -> list[Entry]:
    """What else PEFT has that is small."""
    common = {"task_type": "CAUSAL_LM"}
    everywhere = {"target_modules": "all-linear", **common}
    seeded = {"save_projection": False, **common}
    return [
        Entry("curve", "VeRA", "VeRA r=256, q and v", "VeRA",
              {"r": 256, "target_modules": QV, **seeded}, start=5e-2),
        Entry("curve", "VeRA", "VeRA r=256", "VeRA",
              {"r": 256, "target_modules": "all-linear", **seeded}, start=5e-2),
        Entry("curve", "(IA)³", "(IA)³", "(IA)3",
              {"feedforward_modules": feedforward, **everywhere}, start=5e-2),
        Entry("curve", "LN tuning", "LN tuning", "LN tuning",
              {"target_modules": norms, **common}, start=1e-2),
        Entry("curve", "FourierFT", f"FourierFT n={frequencies}", "FourierFT",
              {"n_frequency": frequencies, "scaling": 150.0, **everywhere}, start=5e-2),
        Entry("curve", "RandLoRA", "RandLoRA r=64, q and v", "RandLoRA",
              {"r": 64, "randlora_alpha": 64, "target_modules": QV, **seeded}, start=1e-2),
    ]  # fmt: skip


def shared_bank(entry: Entry, first_task: str, rate: float) -> Entry:
    """The same config on the bank of an adapter of another task: indices and weights are stored."""
    change = {"bank_of": first_task, "bank_rate": rate}
    name = f"{entry.name}, bank of {first_task}"
    return dataclasses.replace(entry, family="VB-LoRA, shared bank", name=name, change=change)


def controls(entry: Entry) -> list[Entry]:
    """The same config with choices, weights or the bank left as they were drawn."""
    frozen = {
        "all trained": [],
        "choices frozen": ["choices"],
        "choices and weights frozen": ["choices", "weights"],
        "bank frozen": ["bank"],
        "choices and bank frozen": ["choices", "bank"],
    }
    return [
        dataclasses.replace(
            entry,
            study="controls",
            family="controls",
            name=name,
            change={"watch": True, **({"freeze": parts} if parts else {})},
            like="" if parts else entry.name,
            texts=0,
        )
        for name, parts in frozen.items()
    ] + [
        dataclasses.replace(
            entry,
            study="controls",
            family="controls",
            name="all trained, one adapter",
            change={"watch": True, "adapter_seed": 1},
            like="all trained",
            texts=0,
        )
    ]


def changes(entry: Entry, equal_bytes: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Other ways to train the same config, and other configs of as many bytes."""

    def other(
        name: str, times: int = 0, ratio: float = 10.0, change: Any = None, **fields: Any
    ) -> Entry:
        return dataclasses.replace(
            entry, study="changes", family="changes", name=name, times=times, ratio=ratio,
            fields={**entry.fields, **fields}, change=change or {}, like=entry.name, texts=0,
        )  # fmt: skip

    tried = [
        other("logits 3 times the bank's rate", ratio=3.0),
        other("logits 30 times the bank's rate", ratio=30.0),
        other("logits 100 times the bank's rate", ratio=100.0),
        other("bank bound 0.005", init_vector_bank_bound=0.005),
        other("bank bound 0.05", init_vector_bank_bound=0.05),
        other("bank starts as pieces of the base", change={"bank_start": "base weights"}),
        other("starts at the base model", change={"start_at_base": True}),
        other("logits' start 0.01", init_logits_std=0.01),
        other("logits' start 1", init_logits_std=1.0),
        other("topk 3", topk=3),
        other("topk 4", topk=4),
        other("cosine schedule", change={"schedule": "cosine"}),
        other("warm-up 2%", change={"warm_up": 0.02}),
        other("warm-up 20%", change={"warm_up": 0.2}),
        other("choices frozen after half", change={"freeze_at": 0.5}),
        other("choices frozen after a tenth", change={"freeze_at": 0.1}),
    ]
    sizes = [
        other("r={r}, {num_vectors}x{vector_length}".format(**fields), **fields)
        for fields in equal_bytes
    ]
    # Other sizes take other rates; they are searched for.
    return tried + [dataclasses.replace(size, like="") for size in sizes]


def smollm2() -> list[Entry]:
    """At SmolLM2-135M's sizes, which 192 divides."""
    main = vb_entry(4, 256, 192, start=1e-2, texts=300)
    curve = [
        main,
        vb_entry(1, 16, 192, QV, start=2e-2),
        vb_entry(1, 16, 192, start=2e-2),
        vb_entry(4, 90, 64, QV, start=2e-2),
        vb_entry(2, 32, 192, start=1e-2),
        vb_entry(4, 64, 192, start=1e-2),
        vb_entry(4, 90, 64, start=1e-2, texts=300),
        vb_entry(16, 255, 192, start=5e-3),
        vb_entry(32, 255, 192, start=5e-3, texts=300),
        vb_entry(32, 1024, 192, start=5e-3),
        shared_bank(dataclasses.replace(main, texts=0), "hotels", 1e-2),
        lora_entry(1, ["v_proj"], start=2e-2),
        lora_entry(1, QV, start=2e-2, texts=300),
        lora_entry(2, QV, start=1e-2),
        lora_entry(4, QV, start=1e-2),
        lora_entry(16, QV, start=5e-3),
        lora_entry(1, start=1e-2, texts=300),
        lora_entry(4, start=5e-3, texts=300),
        lora_entry(16, start=2e-3),
        *others(
            ["input_layernorm", "post_attention_layernorm", "norm"], ["down_proj"], frequencies=300
        ),
    ]
    equal = [
        {"r": 1, "num_vectors": 308, "vector_length": 192},
        {"r": 2, "num_vectors": 289, "vector_length": 192},
        {"r": 8, "num_vectors": 222, "vector_length": 192},
        {"r": 16, "num_vectors": 123, "vector_length": 192},
        {"r": 4, "num_vectors": 378, "vector_length": 96},
        {"r": 4, "num_vectors": 371, "vector_length": 64},
    ]
    return [*curve, *controls(main), *changes(main, equal)]


def mini_opt() -> list[Entry]:
    """At mini-OPT's sizes, which 256 divides."""
    main = vb_entry(8, 64, 128, start=2e-2, texts=200)
    curve = [
        main,
        vb_entry(1, 4, 256, QV, start=2e-2),
        vb_entry(1, 8, 128, start=2e-2),
        vb_entry(2, 8, 256, start=2e-2),
        vb_entry(4, 16, 256, start=1e-2),
        vb_entry(4, 90, 64, start=1e-2),
        vb_entry(16, 128, 256, start=1e-2, texts=200),
        vb_entry(32, 255, 256, start=1e-2),
        shared_bank(dataclasses.replace(main, texts=0), "hotels", 1e-2),
        lora_entry(1, ["v_proj"], start=2e-2),
        lora_entry(1, QV, start=2e-2),
        lora_entry(4, QV, start=1e-2),
        lora_entry(16, QV, start=1e-2),
        lora_entry(1, start=2e-2, texts=200),
        lora_entry(4, start=1e-2, texts=200),
        lora_entry(16, start=5e-3),
        *others(["self_attn_layer_norm", "final_layer_norm"], ["fc2"], frequencies=300),
    ]
    return [*curve, *controls(main)]


ENTRIES = {"smollm2-135m": smollm2, "mini-opt": mini_opt}


def _training(entry: Entry) -> tuple[Any, ...]:
    """What a trial's result depends on, rates and seed apart; to watch changes nothing."""
    change = {name: value for name, value in entry.change.items() if name != "watch"}
    return entry.kind, entry.fields, entry.ratio, change


def rung(rate: float) -> int:
    """The place of a rate on the ladder."""
    return min(range(len(LADDER)), key=lambda i: abs(math.log(LADDER[i] / rate)))


class Plan:
    """The trials of one base, in an order in which what is done is of use at any time.

    Args:
        setting: of all its trials.
        entries: what is tried.
        failed: keys of trials that broke, for other reasons than their rates.
    """

    def __init__(self, setting: Setting, entries: Iterable[Entry], failed: set[str]) -> None:
        self.setting, self.entries, self.failed = setting, list(entries), failed
        self.by_name = {entry.name: entry for entry in self.entries}
        self._rungs: dict[tuple[str, int], Trial] = {}

    def wanted(
        self, done: Done, studies: Collection[str] = tuple(SEEDS)
    ) -> Iterator[tuple[float, Trial]]:
        """The trials that can be begun now, with their turn (a lower one first).

        Those of ``studies`` alone, and the searches that these take their rates from.
        """
        delay = DELAY.get(self.setting.base, 0.0)
        entries = [entry for entry in self.entries if entry.study in studies]
        for name in dict.fromkeys(self.searched(entry).name for entry in entries):
            entry = self.by_name[name]
            for trial in self.search(entry, done):
                yield delay + SEARCH_TURNS[entry.study], trial
        for entry in entries:
            rate = self.rate(entry, done)
            for turn, seed in zip(TURNS[entry.study], SEEDS[entry.study], strict=True):
                if rate is not None:
                    trial = entry.trial(self.setting, rate, seed)
                    if trial.key not in done and trial.key not in self.failed:
                        yield delay + turn, trial

    def searched(self, entry: Entry) -> Entry:
        """The entry whose search gives an entry its rates: itself, for most."""
        while entry.like:
            entry = self.by_name[entry.like]
        return entry

    def search(self, entry: Entry, done: Done) -> list[Trial]:
        """The rungs that its search needs now; none once it has ended."""
        losses = self.losses(entry, done)
        start = rung(entry.start)
        wanted = [i for i in (start, start + 1) if i not in losses]
        if not wanted and len(losses) < RUNGS:
            best = min(losses, key=lambda i: losses[i])
            wanted = [i for i in (best - 1, best + 1) if i not in losses]
        return [self._on(entry, i) for i in wanted if 0 <= i < len(LADDER)]

    def losses(self, entry: Entry, done: Done) -> dict[int, float]:
        """Loss of each rung that was tried, infinite where training failed."""
        found = {}
        for i in range(len(LADDER)):
            key = self._on(entry, i).key
            if key in done:
                loss = done[key]["loss"]["float32"]
                found[i] = math.inf if loss is None else loss
            elif key in self.failed:
                found[i] = math.inf
        return found

    def rate(self, entry: Entry, done: Done) -> float | None:
        """The rate of its final trials; None while its search goes on, or where all failed."""
        return None if self.search(self.searched(entry), done) else self.best_rate(entry, done)

    def best_rate(self, entry: Entry, done: Done) -> float | None:
        """The best rate of those tried so far; None where there is none."""
        if entry.like:
            rate = self.best_rate(self.by_name[entry.like], done)
            return None if rate is None else LADDER[rung(rate) + entry.times]
        losses = self.losses(entry, done)
        if min(losses.values(), default=math.inf) == math.inf:
            return None
        return LADDER[min(losses, key=lambda i: losses[i])]

    def is_at_edge(self, entry: Entry, done: Done) -> bool:
        """Whether the best rung is the last that was tried on a side: a better one may follow."""
        losses = self.losses(self.searched(entry), done)
        best = min(losses, key=lambda i: losses[i])
        return best in (min(losses), max(losses))

    def finals(self, entry: Entry, done: Done) -> list[Mapping[str, Any]]:
        """The outcomes so far of trials with its best rate, and other seeds than the search's."""
        rate = self.best_rate(entry, done)
        if rate is None:
            return []
        keys = [entry.trial(self.setting, rate, seed).key for seed in SEEDS[entry.study]]
        return [done[key] for key in keys if key in done]

    def first(self, entry: Entry, done: Done) -> Mapping[str, Any] | None:
        """The outcome that chose its rate, with the search's seed; None where there is none.

        What takes its rate from another entry has none of its own, unless both train alike.
        """
        source, rate = self.searched(entry), self.best_rate(entry, done)
        if rate is None or entry.times or _training(entry) != _training(source):
            return None
        return done.get(source.trial(self.setting, rate, SEARCH_SEED).key)

    def _on(self, entry: Entry, i: int) -> Trial:
        if (entry.name, i) not in self._rungs:
            self._rungs[entry.name, i] = entry.trial(self.setting, LADDER[i], SEARCH_SEED)
        return self._rungs[entry.name, i]
