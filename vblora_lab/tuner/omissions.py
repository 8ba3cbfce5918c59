"""What a config leaves out though one might expect it in: new heads, and experts' weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from peft import TaskType
from torch import nn

from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.modules import experts_in, modules_to_save
from vblora_lab.tuner.problems import HEADS_OF_TASKS, Problem

TASK_OF_CLASS = {  # by the ending of a model's class: its head is new, and has to be trained
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
}


def untrained_heads(model: nn.Module, config: VBLoRAConfig) -> list[Problem]:
    """The head of a model for classification, or a part of it, that is neither trained nor stored.

    Args:
        model: the base model, adapted already or not.
        config: with the heads of its task filled in.
    """
    kind = type(model).__name__
    task = next((task for ending, task in TASK_OF_CLASS.items() if kind.endswith(ending)), None)
    if task is None:
        return []
    saved = modules_to_save(model, config)
    heads = [name for name, _ in model.named_children() if name in HEADS_OF_TASKS[task]]
    left = [name for name in heads if name not in saved]
    problems = [_other_parts(model, config, task, [*heads, *saved])]
    if left:
        message = (
            f"modules_to_save: {left[0]!r} of this {kind} is neither trained nor stored. Set "
            f"task_type={task.value!r}, which adds it, or modules_to_save={left!r}."
        )
        wanted = [*(config.modules_to_save or []), *left]
        problems.insert(0, Problem("modules_to_save", message, wanted))
    return [problem for problem in problems if problem is not None]


def _other_parts(
    model: nn.Module, config: VBLoRAConfig, task: TaskType, known: Collection[str]
) -> Problem | None:
    """What else beside the body may be new: DeBERTa's pooler, T5's and BART's heads.

    known: names of the heads, and of what is trained and stored.
    """
    body = getattr(model, "base_model_prefix", "")
    others = [
        name
        for name, child in model.named_children()
        if name not in (body, *known) and next(child.parameters(), None) is not None
    ]
    if not body or not hasattr(model, body) or not others:
        return None
    added = HEADS_OF_TASKS[task] if config.task_type == task else ()
    wanted = [*(name for name in config.modules_to_save or [] if name not in added), *others]
    return Problem(
        "modules_to_save",
        f"modules_to_save: {others[0]!r} of this {type(model).__name__} is neither trained nor "
        f"stored, and PEFT adds no such part for task_type={task.value!r}. In a checkpoint that "
        "wasn't made for this task it is drawn at random, and another one where the adapter is "
        f"loaded. Set modules_to_save={wanted!r}.",
        wanted,
    )


def experts_left_out(named: Mapping[str, nn.Module]) -> list[Problem]:
    """The experts of a mixture, whose weights are parameters and no linear layers.

    Args:
        named: the modules of a model of which all linear layers are to be adapted.
    """
    experts = experts_in(named)
    if not experts:
        return []
    name, weights = next(iter(experts.items()))
    message = (
        f"target_modules: the experts of this model are not adapted ({len(experts)} modules such "
        f"as {name}). Their weights ({', '.join(weights)}) are parameters that each hold all "
        "experts at once; VB-LoRA adapts linear layers."
    )
    return [Problem("target_modules", message, None, tuple(experts))]
