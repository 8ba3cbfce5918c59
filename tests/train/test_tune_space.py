"""Whatever is drawn fits, and what can't fit is refused with what would."""

import random

import pytest

from vblora_lab import plan
from vblora_lab.bases import load_skeleton
from vblora_lab.errors import ConfigError
from vblora_lab.planning.file_size import vblora_file_bytes
from vblora_lab.train.tune_space import Space


class Dice:
    """Draws as a trial of Optuna is asked to; `high` keeps to the upper ends of all ranges."""

    def __init__(self, seed: int, high: bool = False):
        self._random, self._high = random.Random(seed), high

    def suggest_categorical(self, name, choices):
        return self._random.choice(list(choices))

    def suggest_int(self, name, low, high, log=False):
        return high if self._high else self._random.randint(low, high)

    def suggest_float(self, name, low, high, log=False):
        return self._random.uniform(low, high)


@pytest.fixture(scope="module")
def model():
    return load_skeleton("mini-opt")


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("budget", [25_000, 80_000, 1_000_000])
def test_every_draw_fits(model, budget, high):
    space = Space(model, budget, methods=("vblora", "lora"))
    candidates = [space.draw(Dice(seed, high)) for seed in range(8)]
    for candidate in candidates:
        assert candidate.bytes <= budget
        if candidate.method == "vblora":
            planned = plan(model, candidate.config)
            assert planned.fits and candidate.config.save_only_topk_weights
            assert vblora_file_bytes(planned) == candidate.bytes
            assert candidate.memory == planned.memory.total
        assert candidate.config.r <= 16
    assert any(candidate.method == "vblora" for candidate in candidates)


def test_the_upper_ends_use_the_budget(model):
    """The largest topk that fits is one less than one that doesn't, or the largest there is."""
    space = Space(model, 60_000)
    for seed in range(5):
        config = space.draw(Dice(seed, high=True)).config
        if config.topk < 8:
            more = type(config)(**{**config.to_dict(), "topk": config.topk + 1})
            assert vblora_file_bytes(plan(model, more)) > 60_000


def test_memory_is_a_limit_too(model):
    weights = Space(model, 100_000).draw(Dice(0)).memory
    limit = weights + 100_000
    space = Space(model, 1_000_000, memory=limit)
    assert all(space.draw(Dice(seed, high=True)).memory <= limit for seed in range(8))
    with pytest.raises(ConfigError, match=r"memory=1000: training takes [\d,]+ bytes at least"):
        Space(model, 100_000, memory=1000)


def test_what_is_too_small_names_the_smallest_that_would_do(model):
    with pytest.raises(ConfigError, match=r"bytes=5000: no adapter is so small") as caught:
        Space(model, 5000)
    least = caught.value.suggestion
    assert f"give bytes={least} or more" in str(caught.value)
    assert Space(model, least).draw(Dice(0)).bytes == least
    with pytest.raises(ConfigError):
        Space(model, least - 1)


@pytest.mark.parametrize(
    ("methods", "words"),
    [(["lroa"], "did you mean 'lora'"), ([], "one or more"), (["lora"] * 2, "each once")],
)
def test_methods_are_checked(model, methods, words):
    with pytest.raises(ConfigError, match=f"(?i){words}"):
        Space(model, 100_000, methods=methods)
