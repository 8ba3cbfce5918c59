"""Bytes as users come: against the files that are written, by method."""

import pytest
from safetensors.torch import load_file

import vblora_lab.tuner.peft as lab
from tests.cases import CASES
from tests.serving.conftest import USERS
from vblora_lab.errors import UnknownAdapterError
from vblora_lab.serving.store import AdapterStore
from vblora_lab.serving.store_sizes import LORA, OWN, SHARED, bytes_so_far

WEIGHTS = "adapter_model.safetensors"


def test_they_are_the_tensors_of_the_files(adapters, tmp_path):
    store = AdapterStore(tmp_path / "store")
    names = ["first", *USERS[:2], "own"]
    for name in names:
        store.add(adapters / name, name)
    store.export(tmp_path / "lora")
    found = bytes_so_far(store, names)
    expected = {LORA: 0, OWN: 0, SHARED: 0}
    banks = set()
    for i, name in enumerate(names):
        adapter = store[name]

        def size(folder):
            return sum(t.nbytes for t in load_file(folder / WEIGHTS).values())

        expected[LORA] += size(tmp_path / "lora" / name)
        model = lab.from_pretrained(CASES["opt"].base(), adapter.folder, bank=adapter.bank_folder)
        expected[OWN] += size(lab.save_with_bank(model, tmp_path / "with-bank" / name))
        expected[SHARED] += size(adapter.folder)
        expected[SHARED] += 0 if adapter.bank in banks else size(adapter.bank_folder)
        banks.add(adapter.bank)
        assert {method: sizes[i] for method, sizes in found.items()} == expected
    assert len(banks) == 2
    with pytest.raises(UnknownAdapterError):
        bytes_so_far(store, ["first", "nobody"])
