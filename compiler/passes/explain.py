"""What the passes did, and what they left alone and why: as text and as JSON.

One entry per site: the rule, whether it fired, the line and region of the user's text it came
from, and the bytes that it moves before and after (`float` counted as two bytes, at the sizes
given).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...dsl.dims import Dim
from ..ir.graph import Origin
from ..rewrite import Site
from .canonicalize import CANONICALIZE
from .sink_merges import SINK_MERGES

# Canonicalisation is bookkeeping, in whichever pass: it is counted, not listed.
QUIET = frozenset(rule.name for made in (CANONICALIZE, SINK_MERGES) for rule in made.rules)


def places(origins: Sequence[Origin]) -> list[str]:
    """The user's lines, in order: of each span stack the outermost caller."""
    spans = [o.spans[-1] for o in origins if o.spans]
    return list(dict.fromkeys(f"{s.source.name}:{s.line}" for s in spans))


def region(origins: Sequence[Origin]) -> str:
    """The region that all origins share: their longest common path."""
    paths = [o.region.split(".") for o in origins if o.region]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def entry(site: Site, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A site as plain data."""
    return {
        "pass": site.pass_name,
        "rule": site.rule,
        "function": site.function,
        "fired": site.fired,
        "reason": site.reason,
        "value": site.hint,
        "lines": places(site.origins),
        "region": region(site.origins),
        "bytes_before": _count(site.before, sizes),
        "bytes_after": _count(site.after, sizes),
    }


def _count(size: Dim | None, sizes: Mapping[str, int]) -> int | str | None:
    """A number where every symbol has a value, else the formula."""
    if size is None:
        return None
    bound = size.substitute(sizes)
    return bound.constant if bound.constant is not None else str(bound)


def explain_json(sites: Sequence[Site], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    return [entry(s, sizes) for s in sites if s.rule not in QUIET]


def quiet_json(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """How often each quiet rule fired, by pass."""
    counts = Counter((s.pass_name, s.rule) for s in sites if s.rule in QUIET and s.fired)
    return [{"pass": p, "rule": rule, "fired": n} for (p, rule), n in sorted(counts.items())]


def explain_text(sites: Sequence[Site], sizes: Mapping[str, int]) -> str:
    """A line per site, grouped by pass and function; quiet rules as counts per pass."""
    lines: list[str] = []
    heading = None
    for site in sites:
        if site.rule in QUIET:
            continue
        if heading != (site.pass_name, site.function):
            heading = (site.pass_name, site.function)
            lines.append(f"{site.pass_name} in {site.function}")
        lines.append(_line(entry(site, sizes)))
    return "\n".join(_quiet(sites) + lines)


def totals_text(sites: Sequence[Site], sizes: Mapping[str, int]) -> str:
    """A line per pass: how often it fired and declined, and the bytes that its sites move.

    A site counts once, however often its function runs, and twice where two passes come upon it.
    """
    rows = (
        f"  {row['pass']:<18} {row['fired']} fired, {row['declined']} declined{_moved(row)}"
        for row in totals(sites, sizes)
    )
    return "\n".join(["in sum", *rows])


def totals(sites: Sequence[Site], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """What `totals_text` shows, as plain data."""
    shown = [s for s in sites if s.rule not in QUIET]
    rows = []
    for name in dict.fromkeys(s.pass_name for s in shown):
        own = [s for s in shown if s.pass_name == name]
        fired = [s for s in own if s.fired]
        moved = [(s.before, s.after) for s in fired if s.before is not None and s.after is not None]
        before, after = (
            (_count(sum(column, Dim()), sizes) for column in zip(*moved, strict=True))
            if moved
            else (None, None)
        )
        rows.append(
            {
                "pass": name,
                "fired": len(fired),
                "declined": len(own) - len(fired),
                "bytes_before": before,
                "bytes_after": after,
            }
        )
    return rows


def _moved(data: Mapping[str, Any]) -> str:
    """The bytes before and after; empty where there are none."""
    if data["bytes_before"] is None:
        return ""
    return f"  [{_human(data['bytes_before'])} -> {_human(data['bytes_after'])}]"


def _line(data: Mapping[str, Any]) -> str:
    mark = "fired   " if data["fired"] else "declined"
    where = " ".join(
        filter(None, [_range(data["lines"]), data["region"] and f"({data['region']})"])
    )
    reason = f": {data['reason']}" if data["reason"] else ""
    return f"  {mark} {data['rule']} {where}{reason}{_moved(data)}"


def _range(lines: Sequence[str]) -> str:
    """`a.arch:3` or, for several lines, `a.arch:3 (+4 lines)`."""
    if not lines:
        return "(no source)"
    return lines[0] if len(lines) == 1 else f"{lines[0]} (+{len(lines) - 1} lines)"


def _human(count: int | str | None) -> str:
    if not isinstance(count, int):
        return f"{count} B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def _quiet(sites: Sequence[Site]) -> list[str]:
    rows = quiet_json(sites)
    names = dict.fromkeys(s.pass_name for s in sites if s.rule in QUIET and s.fired)
    return [
        f"{name}: " + ", ".join(f"{r['rule']} x{r['fired']}" for r in rows if r["pass"] == name)
        for name in names
    ]
