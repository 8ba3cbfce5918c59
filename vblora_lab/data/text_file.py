"""The text of a file of data, or a sentence that says what the file is instead."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from vblora_lab.errors import DataError

_WORKBOOKS = {
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx files are",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a workbook of old Excel (.xls)",
}
_JSON = re.compile(r'\s*(?:\{\s*"|\[\s*[\[{"])')
_LONGEST_SHOWN = 260


def shown(path: str | Path) -> str:
    """A path as errors show it, which can be printed: whole, or its two ends where it is long."""
    text = str(path).replace("\0", "\\0").encode(errors="backslashreplace").decode()
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}…{text[-half:]}"


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder.

    Raises `DataError` for a path that is too long, has a NUL in it, or may not be looked at.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:
        no_path = isinstance(error, ValueError) or _is_too_long(path, error)
        if no_path or isinstance(error, PermissionError):
            raise _unreadable(path, error) from error
        return False
    return True


def read_text(path: str | Path, *, csv: bool = True) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    csv: whether it should be CSV; else it should be JSON lines. Raises `DataError`, which names the
    file, where there is no text to be had: no such file, a path that can't be one, an empty file, a
    workbook, another encoding, or JSON instead of CSV.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    for signature, kind in _WORKBOOKS.items():
        if data.startswith(signature):
            raise DataError(
                f"{shown(path)}: this is {kind}, and not {'CSV' if csv else 'JSON lines'}; open it "
                "in a spreadsheet program and save the sheet as 'CSV UTF-8', with the columns mr "
                "and ref"
            )
    text = _decode(data, path)
    if not text.strip():
        wanted = "the E2E format has the columns" if csv else "instructions have the keys"
        parts = "mr and ref" if csv else "prompt and completion"
        raise DataError(f"{shown(path)}: the file is empty; {wanted} {parts}")
    if csv and _JSON.match(text):
        raise DataError(
            f"{shown(path)}: this is JSON, and not CSV; write it as CSV, with a first line mr,ref "
            "and one line for each text"
        )
    return text


def _decode(data: bytes, path: str | Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{shown(path)}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def _is_too_long(path: str | Path, error: OSError) -> bool:
    """By what the system says, or by the limit of most: some only say that it isn't there."""
    names = re.split(r"[/\\]", str(path))
    longest = max(len(name) for name in names)
    return error.errno == errno.ENAMETOOLONG or longest > 255 or len(str(path)) > 4096


def _unreadable(path: str | Path, error: OSError | ValueError) -> DataError:
    if isinstance(error, ValueError):
        wrong = "it has the character NUL" if "\0" in str(path) else str(error)
        problem = f"can't be a path: {wrong}; give the path of a CSV file"
    elif _is_too_long(path, error):
        problem = (
            f"can't be read: with {len(str(path))} characters, the path or a name in it is too "
            "long for this system; give the path of a CSV file, or move the file to a shorter one"
        )
    else:
        problem = f"can't be read ({error.strerror or error}); check the path"
    return DataError(f"{shown(path)}: {problem}")
