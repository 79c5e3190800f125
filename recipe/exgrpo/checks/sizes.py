"""Sizes in words: a unit in which the number is not 0.0."""

GIB, MIB = 2**30, 2**20
GB, MB = 1e9, 1e6


def gib(size: float) -> str:
    """Memory, of `size` bytes: "7.0 GiB", below one "512 MiB"."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.0f} MiB"


def gb(size: float) -> str:
    """Disk, of `size` bytes: "91.4 GB", below one "4 MB"."""
    return f"{size / GB:,.1f} GB" if size >= GB else f"{size / MB:,.0f} MB"
