"""Figures of the VB-LoRA paper (arXiv 2405.15179, version 3), as its tables have them.

They were not measured here. Sizes are those of the tables: stored numbers of 32 bits, in millions.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2405.15179v3"


@dataclass(frozen=True)
class Table:
    """Scores of methods on one model, from a table of the paper.

    Attributes:
        number: of the table.
        model, measure: what was fine-tuned, and how it was scored; more is better.
        runs: what the scores are of.
        rows: (method, stored numbers in millions, score).
    """

    number: int
    model: str
    measure: str
    runs: str
    rows: tuple[tuple[str, float, float], ...]


TABLES = (
    Table(
        1, "RoBERTa-large (q, v)", "mean of 6 GLUE tasks", "median of 5 seeds",
        (
            ("VB-LoRA", 0.024, 88.2), ("LoRA", 0.786, 87.8), ("Tied-LoRA", 0.066, 85.9),
            ("VeRA", 0.061, 87.8),
        ),
    ),
    Table(
        2, "GPT-2 Medium", "BLEU on E2E", "mean of 3 seeds",
        (
            ("VB-LoRA", 0.076, 70.0), ("LoRA", 0.35, 68.9), ("VeRA", 0.098, 70.1),
            ("full fine-tuning", 354.92, 68.2),
        ),
    ),
    Table(
        2, "GPT-2 Large", "BLEU on E2E", "mean of 3 seeds",
        (
            ("VB-LoRA", 0.13, 70.3), ("LoRA", 0.77, 70.1), ("VeRA", 0.17, 70.3),
            ("full fine-tuning", 774.03, 68.5),
        ),
    ),
    Table(
        3, "Llama2 13B", "MT-Bench (GPT-4)", "seeds not stated",
        (("VB-LoRA", 1.1, 6.31), ("LoRA", 250.3, 6.13)),
    ),
)  # fmt: skip
"""Of each method its variant for these modules. Of table 3 only what the authors ran themselves:
the scores that they took from the paper of VeRA are of another version of GPT-4, as they note."""
