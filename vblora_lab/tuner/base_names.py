"""What a stored adapter calls its base model: a name that means something on other machines.

PEFT writes the path that the base model was loaded from, which is found nowhere else, says how
this machine's folders are called, and keeps the hub from taking the model card. A folder of a model
may say in its config.json what the model is called; that is written then.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vblora_lab.tuner.config import VBLoRAConfig


def public_name(name: str) -> str:
    """The name that a base model's own config.json gives, if this one is a folder; else itself."""
    try:
        own = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        called = own["_name_or_path"] or ""
        validate_repo_id(called)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, HFValidationError):
        return name  # no folder, or one that says nothing of the kind
    return str(called)


def with_public_base(config: VBLoRAConfig, folder: Path, adapter_name: str) -> VBLoRAConfig:
    """A config with the public name of its base model; the model card beside it is changed too.

    Args:
        config: of the adapter. Not changed.
        folder: where it is being stored.
        adapter_name: which adapter: PEFT writes one card, in the folder of "default".
    """
    name = config.base_model_name_or_path
    public = public_name(name) if name else name
    if not name or public == name:
        return config
    config = copy.copy(config)
    config.base_model_name_or_path = public
    path = (folder if adapter_name == "default" else folder.parent) / "README.md"
    if path.is_file():
        card = ModelCard.load(path)
        if card.data.base_model == name:
            card.data.base_model = public
        card.data.tags = [tag.replace(f":{name}", f":{public}") for tag in card.data.tags or []]
        card.save(path)
    return config
