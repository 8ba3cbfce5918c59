"""Generation in batches writes what each MR gets alone."""

import copy

import torch

from vblora_lab.data import Instruction
from vblora_lab.data.instructions import NO_SLOTS
from vblora_lab.train import write_texts
from vblora_lab.train.generate import write_samples
from vblora_lab.train.prompts import prompt


def test_batches_write_what_one_at_a_time_writes(base, task):
    mrs = [example.mr for example in task.validation[:4]]
    alone = []
    for mr in mrs:
        start = base.tokenizer(prompt(mr), return_tensors="pt")
        with torch.no_grad():
            output = base.model.generate(**start, max_new_tokens=12, do_sample=False)
        new = output[0, start["input_ids"].shape[1] :]
        alone.append(base.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert write_texts(base.model, base.tokenizer, mrs, max_new_tokens=12, batch_size=3) == alone


def test_the_mode_of_the_model_is_put_back(base, task):
    base.model.train()
    write_texts(base.model, base.tokenizer, [task.validation[0].mr], max_new_tokens=1)
    assert base.model.training
    base.model.eval()
    write_texts(base.model, base.tokenizer, [task.validation[0].mr], max_new_tokens=1)
    assert not base.model.training


def test_instructions_are_written_as_the_chat_template_asks(base):
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %} answer:"
    )
    asked = [Instruction("name[Otto]", ("a",)), Instruction("name[Blue Spice], food[Thai]", ("b",))]
    samples = write_samples(base.model, tokenizer, NO_SLOTS, asked)
    for example, sample in zip(asked, samples, strict=True):
        start = base.tokenizer(
            f"user: {example.mr} answer:", add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            output = base.model.generate(**start, max_new_tokens=80, do_sample=False)
        new = output[0, start["input_ids"].shape[1] :]
        assert sample.text == base.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert (sample.mr, sample.slot_errors) == (example.mr, ())
