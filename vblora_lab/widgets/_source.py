"""Reads the JavaScript and CSS beside the widgets. No bundler: files are put end to end."""

from pathlib import Path

_HERE = Path(__file__).parent


def source(*names: str) -> str:
    """The text of those files, one after another: shared parts first, the widget's own last."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def module(name: str, *files: str) -> str:
    """JavaScript that makes of those files, whatever else they declare, one object with `render`.

    So a widget can be made of others, whose scripts use the same names.

    Args:
        name: of the object.
        files: the parts of a script that ends with its export.
    """
    text, end, rest = source(*files).rpartition("export default { render };")
    assert end and not rest.strip(), files
    return f"const {name} = (() => {{\n{text}return {{ render }};\n}})();"
