"""The plug-in of vLLM by its contract with vLLM, whose own server `make serve-check` runs."""

import asyncio
import gc
import importlib
import importlib.util
import os
import sys
import threading
import time
import tomllib
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType, SimpleNamespace

import peft
import pytest

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close
from tests.serving.conftest import USERS
from vblora_lab import cli
from vblora_lab.errors import CheckpointError, ConfigError, StoreError
from vblora_lab.serving import plugin, plugin_cache
from vblora_lab.serving.plugin import StoreResolver, number_of, register
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tuner.config import VBLoRAConfig

WEIGHTS = "adapter_model.safetensors"
PLENTY = 2**30


@pytest.fixture
def store(tmp_path, adapters):
    store = AdapterStore(tmp_path / "store")
    for name in ("first", *USERS):
        store.add(adapters / name, name)
    return store


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The folder of the model that the engine serves; its config.json is all that is needed."""
    folder = tmp_path_factory.mktemp("base")
    CASES["opt"].base().config.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def conversions(monkeypatch):
    """The folders that were written, one after the other."""
    written = []

    def write(folder, *rest):
        written.append(folder)
        write_lora(folder, *rest)

    write_lora = plugin_cache.write_lora
    monkeypatch.setattr(plugin_cache, "write_lora", write)
    return written


def ask(resolver, served, *names):
    """What an engine gets that asks for all names at once; errors among it."""

    async def all_at_once():
        asked = (resolver.resolve(served, name) for name in names)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_at_once())


def bytes_of_one(tmp_path, store) -> int:
    store.export(tmp_path / "one", ["user-0"])
    return (tmp_path / "one" / "user-0" / WEIGHTS).stat().st_size


def test_users_by_name_each_get_their_own_lora_and_it_is_made_once(
    store, served, adapters, tmp_path, conversions
):
    resolver = StoreResolver(store, tmp_path / "cache", PLENTY)
    answers = ask(resolver, served, *USERS[:3] * 4)
    assert len(conversions) == 3 and answers == answers[:3] * 4
    assert len({answer.number for answer in answers}) == 3
    assert answers == ask(resolver, served, *USERS[:3] * 4) and len(conversions) == 3
    case = CASES["opt"]
    for name, answer in zip(USERS, answers[:3], strict=False):
        lora = peft.PeftModel.from_pretrained(case.base(), answer.path)
        ours = lab.from_pretrained(case.base(), adapters / name, bank=adapters / "first")
        assert_close(case.output(lora), case.output(ours))
        assert answer.number == number_of(store[name].digest) > 0


def test_the_event_loop_goes_on_while_an_adapter_is_converted(store, served, tmp_path, monkeypatch):
    begun, may_end = threading.Event(), threading.Event()

    def wait(*arguments):
        begun.set()
        assert may_end.wait(60), "the event loop stood still"
        write_lora(*arguments)

    write_lora = plugin_cache.write_lora
    monkeypatch.setattr(plugin_cache, "write_lora", wait)
    resolver = StoreResolver(store, tmp_path / "cache", PLENTY)

    async def engine():
        asked = asyncio.ensure_future(resolver.resolve(served, "user-0"))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        may_end.set()  # from within the loop
        return await asked

    assert asyncio.run(engine()).path.is_dir()


@pytest.mark.parametrize("name", ["user-9", "..", "../store/user-0", "", "/", "x" * 5000, "\ud800"])
def test_names_of_others_are_left_to_others(store, served, tmp_path, name):
    assert ask(StoreResolver(store, tmp_path / "cache", PLENTY), served, name) == [None]
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_served_fails_alone_and_says_why(store, served, adapters, tmp_path):
    case = CASES["opt"]
    base = case.base()
    base.config.tie_word_embeddings = False
    saving = VBLoRAConfig(**case.config, modules_to_save=["lm_head"])
    store.add(lab.get_peft_model(base, saving), "saving")
    store.add(case.ours(bias="vblora_only"), "biased")
    store.add(CASES["llama"].ours(), "llama")
    store.add(CASES["linear"].ours(), "linear")
    store.add(adapters / "own", "own")
    for folder in (store["user-1"].folder, store["own"].bank_folder):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
    refusals = {
        "saving": (ConfigError, r"adapter 'saving': has modules_to_save=\['lm_head'\]"),
        "biased": (ConfigError, "adapter 'biased': has bias='vblora_only'"),
        "llama": (
            CheckpointError,
            "adapter .llama. doesn.t fit this model: .*names no module of OPT",
        ),
        "linear": (CheckpointError, "adapter 'linear' doesn't fit this model"),
        "user-1": (CheckpointError, "adapter 'user-1' .* is damaged"),
        "own": (CheckpointError, "bank .* is damaged"),
    }
    resolver = StoreResolver(AdapterStore(store.path), tmp_path / "cache", PLENTY)
    answers = ask(resolver, served, *refusals, "user-0")
    for answer, (kind, sentence) in zip(answers, refusals.values(), strict=False):
        assert isinstance(answer, ValueError)  # which vLLM answers with its message
        with pytest.raises(kind, match=sentence):
            raise answer
    assert answers[-1].path.is_dir()


def test_a_model_that_only_the_engine_can_build_is_served_unchecked(store, tmp_path, caplog):
    (answer,) = ask(StoreResolver(store, tmp_path / "cache", PLENTY), str(tmp_path), "user-0")
    assert answer.path.is_dir() and "aren't checked against the model" in caplog.text


def test_a_full_cache_refuses_and_keeps_what_the_engine_has(store, served, tmp_path, conversions):
    cache, room = tmp_path / "cache", int(2.5 * bytes_of_one(tmp_path, store))
    resolver = StoreResolver(store, cache, room)
    first, second, third = ask(resolver, served, *USERS[:3])
    assert isinstance(third, StoreError)
    third = str(third)  # its traceback would keep the first resolver
    assert "'user-2'" in third and "2 adapters of" in third and plugin.CACHE_BYTES in third
    assert first.path.is_dir() and second.path.is_dir()
    # Another process meanwhile, and one after this has ended.
    other = StoreResolver(store, cache, room)
    assert ask(other, served, "user-0")[0].path.parent != first.path.parent
    del resolver, other
    gc.collect()
    conversions.clear()
    later = StoreResolver(store, cache, room)
    assert ask(later, served, "user-1") == [second] and conversions == []
    assert ask(later, served, "user-3")[0].path.is_dir()
    assert second.path.is_dir() and not first.path.is_dir()  # the least recently used


def test_an_adapter_that_was_replaced_gets_another_number_and_its_old_place(
    store, served, adapters, tmp_path
):
    room = int(1.5 * bytes_of_one(tmp_path, store))
    resolver = StoreResolver(store, tmp_path / "cache", room)
    (old,) = ask(resolver, served, "user-0")
    store.add(adapters / "user-3", "user-0", replace=True)
    (new,) = ask(resolver, served, "user-0")  # the engine asks after it unloaded the name
    assert new.number != old.number and new.path.is_dir() and not old.path.exists()


def test_only_what_a_killed_process_left_is_deleted(store, served, tmp_path):
    cache = tmp_path / "cache" / "lora-0"
    left, mine = cache / ".abc.new", cache / "mine"
    for folder in (left, mine):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("x")
    room = int(1.5 * bytes_of_one(tmp_path, store))
    first = StoreResolver(store, tmp_path / "cache", room)
    ask(first, served, "user-0")
    gone = weakref.ref(first)
    del first
    while gone() is not None:  # its thread lets go of it, and of the folder, soon after its answer
        gc.collect()
        time.sleep(0.01)
    ask(StoreResolver(store, tmp_path / "cache", room), served, "user-1")
    assert not left.exists() and (mine / "notes.txt").is_file()
    assert {path.name for path in cache.iterdir()} == {"mine", store["user-1"].digest}


def test_a_cache_that_cannot_be_written_is_a_refusal(store, served, tmp_path):
    (tmp_path / "cache").write_text("a file")
    (answer,) = ask(StoreResolver(store, tmp_path / "cache", PLENTY), served, "user-0")
    assert isinstance(answer, StoreError) and "adapter 'user-0' can't be read or conv" in str(
        answer
    )


# --- the seam to vLLM


@pytest.fixture
def vllm(monkeypatch):
    """What the plug-in uses of vLLM 0.32: `LoRARequest`, `LoRAResolver` and the registry."""

    class LoRAResolver(ABC):
        @abstractmethod
        async def resolve_lora(self, base_model_name, lora_name): ...

    resolvers = {}
    registry = SimpleNamespace(resolvers=resolvers, register_resolver=resolvers.__setitem__)
    for name, content in {
        "vllm": {},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": SimpleNamespace},
        "vllm.lora.resolver": {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": registry},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for variable in (plugin.STORE, plugin.CACHE, plugin.CACHE_BYTES):
        monkeypatch.delenv(variable, raising=False)
    return SimpleNamespace(LoRAResolver=LoRAResolver, resolvers=resolvers)


def test_the_entry_point_is_that_of_vllm():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["vllm.general_plugins"]
    module, _, function = points["vblora_lab"].partition(":")
    assert getattr(importlib.import_module(module), function) is register


def test_vllm_is_given_a_resolver_if_there_is_a_store(vllm, store, served, tmp_path, monkeypatch):
    register()
    assert vllm.resolvers == {}
    monkeypatch.setenv(plugin.STORE, str(tmp_path / "none"))
    with pytest.raises(StoreError, match="there is no store"):
        register()
    monkeypatch.setenv(plugin.STORE, str(store.path))
    monkeypatch.setenv(plugin.CACHE_BYTES, "16 GB")
    with pytest.raises(StoreError, match=r"VBLORA_LAB_LORA_CACHE_BYTES='16 GB': must be"):
        register()
    assert vllm.resolvers == {}
    monkeypatch.setenv(plugin.CACHE_BYTES, str(PLENTY))
    monkeypatch.setenv(plugin.CACHE, str(tmp_path / "cache"))
    register()
    register()  # vLLM may call it more than once
    (resolver,) = vllm.resolvers.values()
    assert isinstance(resolver, vllm.LoRAResolver)
    request = asyncio.run(resolver.resolve_lora(served, "user-0"))
    assert request.lora_name == "user-0" and request.lora_int_id == number_of(
        store["user-0"].digest
    )
    assert (Path(request.lora_path) / WEIGHTS).is_file()
    assert Path(request.lora_path).is_relative_to(tmp_path / "cache")
    assert asyncio.run(resolver.resolve_lora(served, "someone else's")) is None


# --- vblora-lab serve


def test_the_command_becomes_vllms_server(store, tmp_path, monkeypatch):
    started = []

    def become(*arguments):
        started.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command = f"serve mini-opt --store {store.path} --port 8123 --cache {tmp_path / 'cache'}"
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--vllm=--max-lora-rank 64"])
    ((program, arguments, environment),) = started
    assert program == arguments[0] == sys.executable
    assert environment[plugin.STORE] == str(store.path)
    assert environment[plugin.CACHE] == str(tmp_path / "cache")
    assert plugin.CACHE_BYTES not in environment
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    options = dict(zip(arguments[3:9:2], arguments[4:9:2], strict=False))
    assert (Path(options["--model"]) / "config.json").is_file()
    assert "--served-model-name mini-opt --host 127.0.0.1 --port 8123" in " ".join(arguments)
    assert arguments[-2:] == ["--max-lora-rank", "64"]


def test_without_vllm_or_a_store_the_command_says_what_to_do(store, tmp_path, monkeypatch, capsys):
    assert cli.main(["serve", "mini-opt", "--store", str(tmp_path / "none")]) == 2
    assert "there is no store" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["serve", "mini-opt", "--store", str(store.path)]) == 2
    assert "pip install vllm" in capsys.readouterr().err
