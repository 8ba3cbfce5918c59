"""``vblora-lab store``: a folder of many adapters that share banks, by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vblora_lab.app.convert import add_bank_option, add_workers_option
from vblora_lab.errors import StoreError, VBLoRAError
from vblora_lab.tables import aligned, count, readable


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    store = commands.add_parser(
        "store",
        help="keep thousands of adapters and the banks that they share in one folder",
        description="Keep many VB-LoRA adapters in one folder, each bank once, and find them by "
        "name.",
    )
    actions = store.add_subparsers(required=True, metavar="ACTION")

    add = _action(actions, "add", _add, "put copies of adapters into a store, and make it if new")
    add.add_argument("adapters", nargs="+", metavar="ADAPTER", help="folder or Hub id")
    add.add_argument("--name", help="for one adapter (default: the last part of its path)")
    add_bank_option(add)
    add.add_argument("--replace", action="store_true", help="also adapters that are there")

    show = _action(actions, "list", _list, "names, sizes and banks of all adapters")
    show.add_argument("--names", action="store_true", help="only names, one a line")

    remove = _action(actions, "remove", _remove, "take adapters out")
    remove.add_argument("names", nargs="+", metavar="NAME")

    check = _action(
        actions, "check", _check, "read all and say what is damaged (exit status 1 if anything is)"
    )
    check.add_argument("--clean", action="store_true", help="delete what belongs to no adapter")

    export = _action(actions, "export", _export, "write adapters as LoRA; called again, it goes on")
    export.add_argument("out", type=Path, metavar="OUT", help="folder for a folder of each")
    export.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    add_workers_option(export)


def _action(actions: Any, name: str, run: Any, help: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the store")
    parser.set_defaults(run=run)
    return parser


def _add(args: argparse.Namespace) -> int:
    from vblora_lab.serving.store import AdapterStore
    from vblora_lab.tuner.loading import given_bank

    if args.name is not None and len(args.adapters) > 1:
        raise StoreError(
            f"--name {args.name}: is for one ADAPTER, and {len(args.adapters)} are given."
        )
    store, bank, failed = AdapterStore(args.store), given_bank(args.bank), 0
    for adapter in args.adapters:
        name = args.name or Path(adapter).resolve().name
        try:
            added = store.add(adapter, name, bank=bank, replace=args.replace)
            print(f"{added.name}: {readable(added.bytes)}, bank {added.bank[:12]}")
        except VBLoRAError as error:
            if len(args.adapters) == 1:
                raise
            print(f"{name}: {error}")
            failed += 1
    if failed:
        print(f"{count(failed, 'adapter')} not added")
    return 1 if failed else 0


def _list(args: argparse.Namespace) -> int:
    adapters = list(_opened(args).adapters())
    if args.names:
        print(*(adapter.name for adapter in adapters), sep="\n")
        return 0
    rows = [["name", "adapter", "bank", "base model"]]
    rows += [[a.name, readable(a.bytes), a.bank[:12], a.base_model or ""] for a in adapters]
    banks = {a.bank for a in adapters}
    print(*aligned(rows), sep="\n")
    print(
        f"{count(len(adapters), 'adapter')}, {readable(sum(a.bytes for a in adapters))} in all, "
        f"and {count(len(banks), 'bank')}"
    )
    return 0


def _remove(args: argparse.Namespace) -> int:
    store = _opened(args)
    for name in args.names:
        store[name]  # all are there, or none is removed
    for name in args.names:
        store.remove(name)
    return 0


def _check(args: argparse.Namespace) -> int:
    store = _opened(args)
    problems = store.check()
    print(*problems, sep="\n", end="\n" if problems else "")
    if args.clean:
        print(f"{count(store.clean(), 'folder')} deleted that belonged to no adapter")
    if not problems:
        print(f"{count(len(store), 'adapter')}, all as they were added")
    return 1 if problems else 0


def _export(args: argparse.Namespace) -> int:
    exported = _opened(args).export(args.out, args.names or None, workers=args.workers)
    print(exported)
    return 1 if exported.failed else 0


def _opened(args: argparse.Namespace) -> Any:
    from vblora_lab.serving.store import AdapterStore

    return AdapterStore(args.store, create=False)
