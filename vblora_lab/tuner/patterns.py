"""Regular expressions that come with files, and may take for ever.

Python's `re`, by which PEFT matches, tries every way of matching: an expression such as
``([a-z]+)+#`` takes twice as long for each further letter of a name. Nothing can stop it within
its process, so an expression that may be such a one is tried first in a process that can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from vblora_lab.errors import ConfigError

SECONDS = 1.0
LONGEST = 10_000  # characters
FEW_REPEATS = 3  # so many at most, none of them of a group, take a time that can't get out of hand
_REPEAT = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{?]")

_HELPER = """
import json, re, sys
expression, names = json.load(sys.stdin)
print("ready", flush=True)
for name in names:
    re.match(expression, name), re.fullmatch(expression, name)
"""


def check_takes_no_time(field: str, expression: str, names: Iterable[str]) -> None:
    """Raise `ConfigError` for an expression that matches names too slowly.

    Args:
        field: of the config, for the message.
        expression: one that compiles.
        names: of all modules that it would be matched against.
    """
    may_explode = _REPEATED_GROUP.search(expression) or _many_repeats(expression)
    if may_explode and not _ends_in_time(expression, list(names)):
        raise ConfigError(
            f"{field}={expression!r}: takes more than {SECONDS:g} s to match the names of this "
            "model, since it has repeats within repeats. Write it without them, or list the "
            "modules.",
            field=field,
        )


def _many_repeats(expression: str) -> bool:
    return len(_REPEAT.findall(expression)) > FEW_REPEATS


def _ends_in_time(expression: str, names: list[str]) -> bool:
    command = [sys.executable, "-I", "-S", "-c", _HELPER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as helper:
        assert helper.stdin is not None and helper.stdout is not None
        try:
            json.dump([expression, names], helper.stdin)
            helper.stdin.close()
            helper.stdout.readline()  # the time that Python takes to start doesn't count
            helper.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            helper.kill()
    return True
