"""Exercises of notebook 04: every field."""

from __future__ import annotations

from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, equals

BANK, LOGITS = 256 * 64, 192 * 256  # of the adapter in the questions
MOST_BYTES, LEAST_RANK, LEAST_VECTORS = 20_000, 4, 64


def _check_config(answer: Any) -> None:
    from vblora_lab.bases import load_skeleton
    from vblora_lab.planning.plan import plan
    from vblora_lab.tuner.config import VBLoRAConfig

    if not isinstance(answer, VBLoRAConfig):
        kind = type(answer)
        of = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
        raise Wrong(f"the answer is a lab.VBLoRAConfig; this is a {of}{kind.__name__}.")
    if answer.r < LEAST_RANK or answer.num_vectors < LEAST_VECTORS:
        raise Wrong(
            f"r is {answer.r} and num_vectors {answer.num_vectors}; at least {LEAST_RANK} and "
            f"{LEAST_VECTORS} are asked for."
        )
    found = plan(load_skeleton("mini-opt"), answer)
    if not found.fits:
        raise Wrong(f"it doesn't fit the model. {found.problems[0].message}")
    adapted = {target.name.rpartition(".")[2] for target in found.targets}
    if adapted != {"q_proj", "v_proj"} or len(found.targets) != 12:
        names = ", ".join(sorted(adapted))
        raise Wrong(f"it adapts {len(found.targets)} modules ({names}); 12 are asked for.")
    if found.stored_bytes > MOST_BYTES:
        text = f"it stores {found.stored_bytes:,} bytes, more than {MOST_BYTES:,}."
        if not answer.save_only_topk_weights:
            text += " Are all those logits needed in the file?"
        elif found.bank_parameters * 4 > MOST_BYTES:
            text += f" The bank alone takes {found.bank_parameters * 4:,} of them."
        raise Wrong(text)


EXERCISES = [
    Exercise(
        "04-rank",
        hint="r is the number of rows of A and of columns of B. Which of the two, bank or logits, "
        "knows about rows and columns?",
        checker=equals(
            BANK + 2 * LOGITS,
            {
                2 * (BANK + LOGITS): "that doubles the bank too; its size doesn't know r.",
                BANK + LOGITS: "that is what it was: twice the rows are twice the sub-vectors, and "
                "each has logits.",
                2 * LOGITS: "those are the logits alone; the bank is trained too.",
                2 * BANK + LOGITS: "that doubles the bank; r doubles the logits.",
            },
        ),
        because="twice the rank is twice the sub-vectors, so twice the logits. The bank stays.",
        solution="answer = 256 * 64 + 2 * 192 * 256",
    ),
    Exercise(
        "04-length",
        hint="Longer vectors: what does one of them hold, and how many pieces is a row cut into?",
        checker=equals(
            2 * BANK + LOGITS // 2,
            {
                2 * BANK + LOGITS: "the bank is right; but longer pieces are fewer pieces, and "
                "each piece has logits.",
                BANK + LOGITS // 2: "the logits are right; but 256 longer vectors hold more.",
                2 * (BANK + LOGITS): "longer pieces are fewer pieces: the logits become fewer.",
                BANK + LOGITS: "that is what it was; both parts change.",
                LOGITS // 2: "those are the logits alone; the bank is trained too.",
            },
        ),
        because="the bank doubles, and the logits halve, since a row is cut into half as many "
        "pieces. So there is a length at which the sum is smallest.",
        solution="answer = 2 * 256 * 64 + 192 * 256 // 2",
    ),
    Exercise(
        "04-bound",
        hint="Every number of the bank is multiplied by the same factor, and so are A and B. What "
        "is their product multiplied by?",
        checker=equals(
            9,
            {
                3: "A grows by that, and so does B. The update is their product.",
                1: "the weights of a mixture sum to 1 either way, but the vectors that are mixed "
                "have grown.",
                6: "the factors of A and of B are multiplied, not added.",
            },
        ),
        because="A and B are mixtures of bank vectors, so each grows by 3, and BA by 3 times 3.",
        solution="answer = 3 * 3",
    ),
    Exercise(
        "04-config",
        hint="lab.plan(mini, answer).stored_bytes says what a try takes. Look first at what is in "
        "the file beside the bank, then at the bank itself.",
        checker=_check_config,
        because="all logits are left out of the file, and a bank of few, short vectors is small.",
        solution="import vblora_lab as lab\n\n"
        "answer = lab.VBLoRAConfig(\n"
        "    r=4,\n"
        "    num_vectors=64,\n"
        "    vector_length=64,\n"
        '    target_modules=["q_proj", "v_proj"],\n'
        "    save_only_topk_weights=True,\n"
        ")",
    ),
]
