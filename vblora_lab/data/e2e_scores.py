"""The five measures of the E2E NLG challenge, by the libraries that its own script uses or matches.

BLEU is sacrebleu's; NIST is nltk's, on sacrebleu's tokens; METEOR, ROUGE-L and CIDEr are those of
the COCO caption evaluation (pycocoevalcap), which runs Java. What a machine has no library for is
left out, with the reason: nothing here computes a measure of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence

from vblora_lab.data.metrics import bleu

Texts = Sequence[str]
References = Sequence[Sequence[str]]

COLUMNS = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")


def e2e_scores(texts: Texts, references: References) -> dict[str, float | str]:
    """Each of `COLUMNS`: its value, or why it is absent.

    BLEU, METEOR and ROUGE-L from 0 to 100, NIST and CIDEr from 0 on, as papers print them. Each
    text has one or more references. Raises ValueError where the two differ in number or are none.
    """
    if len(texts) != len(references) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(references)} groups of references")
    scores: dict[str, float | str] = {"BLEU": bleu(texts, references)}
    scores["NIST"] = _missing("nltk") or _nist(texts, references)
    captions = _missing("pycocoevalcap") or _missing_java()
    if captions:
        return scores | dict.fromkeys(COLUMNS[2:], captions)
    return scores | _caption_scores(texts, references)


def _missing(library: str) -> str | None:
    found = importlib.util.find_spec(library) is not None
    return None if found else f"{library} is not installed (pip install 'vblora-lab[e2e]')"


def _missing_java() -> str | None:
    return None if shutil.which("java") else "pycocoevalcap runs Java, and there is none here"


def _nist(texts: Texts, references: References) -> float | str:
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut: Callable[[str], str] = Tokenizer13a()
    try:
        return float(
            corpus_nist(
                [[cut(one.lower()).split() for one in group] for group in references],
                [cut(text.lower()).split() for text in texts],
            )
        )
    except ZeroDivisionError:
        return "no text is long enough for it"


def _caption_scores(texts: Texts, references: References) -> dict[str, float | str]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    wanted = tokenizer.tokenize(
        {i: [{"caption": one} for one in group] for i, group in enumerate(references)}
    )
    said = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    scales = {"METEOR": (Meteor(), 100), "ROUGE-L": (Rouge(), 100), "CIDEr": (Cider(), 1)}
    return {
        name: float(scale * scorer.compute_score(wanted, said)[0])
        for name, (scorer, scale) in scales.items()
    }
