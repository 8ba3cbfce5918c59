"""Exercises of notebook 09: speed."""

from __future__ import annotations

from vblora_lab.course.exercise import Exercise, equals

BASE, ADAPTER, FASTER = 40, 60, 10  # milliseconds of a step, and how many times faster
MODULES = 36
KERNELS, LAUNCH, WORK = 1000, 10, 2  # how many, and microseconds each
SUB_VECTORS, NUM_VECTORS = 100_000, 2048
LOGIT_BYTES = SUB_VECTORS * NUM_VECTORS * 4

EXERCISES = [
    Exercise(
        "09-gain",
        hint="How long does a step take afterwards? The 40 ms of the base model stay.",
        checker=equals(
            (BASE + ADAPTER) / (BASE + ADAPTER / FASTER),
            {
                FASTER: "so it would be if the adapter were all there is; the base model's 40 ms "
                "stay.",
                BASE + ADAPTER / FASTER: "that is how long a step takes then; how many times "
                "faster than 100 ms is it?",
                (BASE + ADAPTER) / BASE: "that is with no adapter at all, the most one can gain.",
                (BASE + ADAPTER / FASTER) / (BASE + ADAPTER): "turn it round: before divided "
                "by after.",
                ADAPTER - ADAPTER / FASTER: "that is how many ms are saved.",
            },
        ),
        because="100 ms become 46 ms. Even an adapter that costs nothing would gain 2.5 times: the "
        "base model is the floor.",
        solution="answer = (40 + 60) / (40 + 60 / 10)",
    ),
    Exercise(
        "09-calls",
        hint="Each adapted module has two matrices, A and B, and each is mixed by itself.",
        checker=equals(
            2 * MODULES,
            {
                MODULES: "each module has A and B.",
                1: "so it is if all modules are mixed at once; PEFT mixes layer by layer.",
                4 * MODULES: "twice too many. The backward pass needs no new top-k: it uses the "
                "choice of the forward pass.",
                6: "that is the layers; each has six adapted modules.",
                12: "that is as if each layer had one adapted module; it has six.",
            },
        ),
        because="A and B of 36 modules. Each time a softmax, a lookup and a weighted sum follow.",
        solution="answer = 36 * 2",
    ),
    Exercise(
        "09-launch",
        hint="While the GPU works on one kernel, Python launches the next. Which of the two waits "
        "for the other? And when is the last kernel done?",
        checker=equals(
            KERNELS * LAUNCH + WORK,
            {
                KERNELS * (LAUNCH + WORK): "that is as if Python waited for each kernel; it goes "
                "on at once and launches the next.",
                KERNELS * WORK: "that is the GPU's work alone; it can't begin a kernel before it "
                "is launched.",
                KERNELS * LAUNCH: "nearly: then the last one is launched, but not yet done.",
            },
        ),
        because="the GPU is done with each kernel long before the next is launched, so launching "
        "sets the pace. 80% of the time, the GPU waits.",
        solution="answer = 1000 * 10 + 2",
    ),
    Exercise(
        "09-traffic",
        hint="100,000 * 2,048 numbers of 4 bytes. How often does that much go to or from memory?",
        checker=equals(
            2 * LOGIT_BYTES,
            {
                LOGIT_BYTES: "that reads the logits; their gradient, just as large, is written.",
                2 * SUB_VECTORS * NUM_VECTORS: "those are numbers; each takes 4 bytes.",
                SUB_VECTORS * NUM_VECTORS: "those are the logits, as numbers of 4 bytes each; and "
                "their gradient is written too.",
                3 * LOGIT_BYTES: "the backward pass needn't read the logits again: it has the "
                "choices and weights, which are few.",
            },
        ),
        because="each logit is read once and its gradient written once. Nothing that reads all "
        "logits can be quicker than this traffic.",
        solution="answer = 2 * 100_000 * 2048 * 4",
    ),
]
