"""Probe: its loss against token-by-token probabilities, and that looking changes nothing."""

import torch

from vblora_lab.train import Outcome, Probe, TrainingSession, write_texts


def test_loss_is_the_mean_over_all_completion_tokens(base, task):
    model, tokenizer = base
    outcome = Probe(model, tokenizer, task, examples=2)()
    losses = []
    for example in task.validation[:2]:
        for reference in example.references:
            start = tokenizer(example.mr + " ->")["input_ids"]
            rest = [*tokenizer(" " + reference, add_special_tokens=False)["input_ids"],
                    tokenizer.eos_token_id]  # fmt: skip
            with torch.no_grad():
                logits = model(torch.tensor([start + rest])).logits[0].double().log_softmax(-1)
            losses += [-logits[len(start) + i - 1, token].item() for i, token in enumerate(rest)]
    assert abs(outcome.loss - sum(losses) / len(losses)) < 1e-5
    assert outcome.prompt == task.validation[0].mr
    assert outcome.text == write_texts(model, tokenizer, [outcome.prompt])[0]


def test_a_probe_of_a_session_repeats_itself_and_keeps_the_mode(base, task, config):
    session = TrainingSession(base, config, task, steps=1)
    probe = Probe.of(session, examples=2)
    session.model.train()
    first = probe()
    assert isinstance(first, Outcome) and session.model.training
    assert probe() == first
    assert probe.loss() == first.loss and session.model.training
