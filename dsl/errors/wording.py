"""Words that several errors share."""

from __future__ import annotations


def listed(names: tuple[str, ...], limit: int = 5) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
