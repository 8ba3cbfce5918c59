"""The section ``large`` in the report: times, memory, and how far each method is from the floor."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

# What a device can do at most: floating-point operations of dense bf16 products, and bytes of its
# memory, in a second. From NVIDIA's data sheets of the H100 and H200 Tensor Core GPUs, SXM: there
# 1,979 TFLOP/s are with sparsity, so half of it without, and 3.35 and 4.8 TB/s.
PEAKS = {
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H200": (989e12, 4.8e12),
}


def teraflops(floor: dict[str, float]) -> float:
    """Of all kinds together."""
    return sum(n for name, n in floor.items() if name.startswith("teraflops"))


def floor_milliseconds(floor: dict[str, float], device: str) -> float | None:
    """What a step takes at the device's peak rates; None for a device that isn't in `PEAKS`.

    Arithmetic and reading at once, so the longer of the two.

    Args:
        floor: of a record.
        device: as PyTorch names it.
    """
    if device not in PEAKS:
        return None
    operations, read = PEAKS[device]
    return 1e3 * max(1e12 * teraflops(floor) / operations, 1e9 * floor["gigabytes_weights"] / read)


def floor_rows(records: list[Record], device: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table: each row's floor, and each method's time in multiples of it.

    Args:
        records: of the section.
        device: as PyTorch names it. Without its peak there is the floor alone, not in milliseconds.
    """
    known = device in PEAKS
    methods = methods_of(records) if known else []
    header = ["", "TFLOP", "GB of weights read", *(["floor, ms"] * known), *methods]
    lines = []
    for record in records:
        floor, times = record["floor"], record["milliseconds"]
        line = [record["row"], f"{teraflops(floor):.1f}", f"{floor['gigabytes_weights']:.1f}"]
        if (least := floor_milliseconds(floor, device)) is not None:
            taken = [times.get(method) for method in methods]
            line += [f"{least:.1f}", *("" if t is None else f"{t / least:.2f}x" for t in taken)]
        lines.append(line)
    return header, lines


def methods_of(records: list[Record]) -> list[str]:
    """Names of all methods that were measured in some record, in order."""
    return list(dict.fromkeys(m for record in records for m in record["milliseconds"]))


ABOUT_THE_FLOOR = """\
The floor is what no step of this kind can do without: products with frozen weights forward, again
under checkpointing, and for the gradient of their input; those of attention; those with A and B,
and for their gradients; and each weight read as often, in the bits that it is stored in. In
milliseconds it is the longer of arithmetic and reading at the device's peak rates, which no product
reaches."""


def large_parts(records: list[Record], device: str, table: Any, timings: Any) -> list[str]:
    """What follows the times of the section: memory and the floor.

    Records from before rounds were told have neither: their floor leaves attention out and counts
    the head as if it were checkpointed, and a method's memory has that of those before it.
    """
    records = [record for record in records if "rounds" in record]
    if not records:
        return []
    parts = []
    if any(value is not None for record in records for value in record["peak_gib"].values()):
        memory = [record | {"milliseconds": record["peak_gib"]} for record in records]
        parts.append(timings(memory, "GiB at the peak"))
    return [*parts, ABOUT_THE_FLOOR, table(*floor_rows(records, device))]
