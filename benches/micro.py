"""The figures of the micro-benchmarks, each beside its floor, as a table and as a picture.

    python benches/micro.py CRITERION_FOLDER [--since FILE] [--svg FILE]

Reads what criterion left in that folder, or only what is newer than FILE. Where a bench says how many tokens or
bytes a call handles, times are those of one token, and a column has GB/s; medians throughout. A bar in the picture is such a median, a line across it
the floor; each panel has its own scale.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

FLOOR = "floor"
NS = {"ns": 1, "us": 1e3, "ms": 1e6}
# Of the picture, in pixels.
COLUMNS, PANEL, HEIGHT, LEFT, GAP = 3, 330, 190, 46, 12
INK, OURS, RED = "#333", ("#1f6fc4", "#1d7d4f", "#d9a45b", "#7a5fb0"), "#c22f2f"


@dataclass(frozen=True)
class Figure:
    group: str
    what: str
    case: str  # such as a number of sequences, or nothing
    ns: float  # a call, or a token of it
    of: str
    rate: float | None  # bytes/ns


def figure(folder: Path) -> Figure:
    bench = json.loads((folder / "benchmark.json").read_text())
    ns = json.loads((folder / "estimates.json").read_text())["median"]["point_estimate"]
    throughput = bench["throughput"] or {}
    size = throughput.get("Bytes")
    return Figure(
        bench["group_id"],
        bench["function_id"],
        bench["value_str"] or "",
        ns / throughput.get("Elements", 1),
        "token" if "Elements" in throughput else "call",
        size and size / ns,
    )


def read(folder: Path, since: float) -> dict[str, list[Figure]]:
    """The figures of each group, both in the order in which they ran."""
    files = sorted(folder.glob("**/new/estimates.json"), key=lambda file: file.stat().st_mtime)
    groups: dict[str, list[Figure]] = {}
    for file in files:
        if file.stat().st_mtime >= since:
            one = figure(file.parent)
            groups.setdefault(one.group, []).append(one)
    return groups


def floor_of(one: Figure, figures: list[Figure]) -> float | None:
    """The floor of the same case, or of the whole group."""
    floors = {f.case: f.ns for f in figures if f.what == FLOOR}
    return floors.get(one.case, floors.get(""))


def unit(ns: float) -> str:
    return max((name for name in NS if ns >= NS[name]), key=NS.get, default="ns")


def duration(ns: float) -> str:
    return f"{ns / NS[unit(ns)]:.3g} {unit(ns)}"


def table(groups: dict[str, list[Figure]]) -> str:
    lines = [f"{'bench':<24} {'what':<14} {'case':>8} {'median':>10} {'floor':>10} {'of floor':>9} {'GB/s':>6}"]
    for group, figures in groups.items():
        for one in (f for f in figures if f.what != FLOOR):
            floor = floor_of(one, figures)
            beside = f"{duration(floor):>10} {floor / one.ns:>8.0%}" if floor else f"{'':>19}"
            rate = f"{one.rate:>7.1f}" if one.rate else ""
            lines.append(f"{group:<24} {one.what:<14} {one.case:>8} {duration(one.ns):>10} {beside} {rate}".rstrip())
    return "\n".join(lines)


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def panel(group: str, figures: list[Figure]) -> list[str]:
    """Bars of each case beside each other, and the floor across them."""
    ours = [f for f in figures if f.what != FLOOR]
    names, cases = (list(dict.fromkeys(of)) for of in ([f.what for f in ours], [f.case for f in ours]))
    most = max(f.ns for f in figures)
    scale = NS[unit(most)]
    width = (PANEL - LEFT - GAP) / len(ours)
    bottom, tall = HEIGHT - 44, HEIGHT - 44 - 34
    parts = [text(GAP, 20, group, 'font-weight="bold"')]
    for share in (0, 0.5, 1):
        y = bottom - share * tall
        parts.append(f'<path d="M{LEFT} {y:.1f}H{PANEL - GAP}" stroke="#ddd"/>')
        parts.append(text(LEFT - 5, y + 4, f"{share * most / scale:.3g}", 'text-anchor="end"'))
    for at, one in enumerate(sorted(ours, key=lambda f: cases.index(f.case))):
        x, high = LEFT + at * width, tall * one.ns / most
        colour = OURS[names.index(one.what) % len(OURS)]
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{bottom - high:.1f}" width="{width - 4:.1f}" height="{high:.1f}" fill="{colour}">'
            f"<title>{escape(f'{one.what} {one.case}: {duration(one.ns)}')}</title></rect>"
        )
        parts.append(text(x + width / 2, bottom + 14, one.case or one.what, 'text-anchor="middle"'))
        if floor := floor_of(one, figures):
            y = bottom - tall * floor / most
            parts.append(f'<path d="M{x:.1f} {y:.1f}h{width:.1f}" stroke="{RED}" stroke-width="2"/>')
    legend = [(name, OURS[at % len(OURS)]) for at, name in enumerate(names)] if any(f.case for f in ours) else []
    if any(f.what == FLOOR for f in figures):
        legend.append((FLOOR, RED))
    x = LEFT
    for name, colour in legend:
        parts.append(text(x, bottom + 32, f"■ {name}", f'fill="{colour}"'))
        x += 28 + 6.5 * len(name)
    parts.append(text(PANEL - GAP, 20, f"{unit(most)} a {ours[0].of}", 'text-anchor="end"'))
    return parts


def svg(groups: dict[str, list[Figure]]) -> str:
    rows = -(-len(groups) // COLUMNS)
    wide, high = COLUMNS * PANEL, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" fill="{INK}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for at, (group, figures) in enumerate(groups.items()):
        x, y = at % COLUMNS * PANEL, at // COLUMNS * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *panel(group, figures), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--since", type=Path)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    groups = read(args.folder, args.since.stat().st_mtime if args.since else 0)
    if not groups:
        sys.exit(f"{args.folder}: no figures of criterion; run cargo bench first")
    print(table(groups))
    if args.svg:
        args.svg.write_text(svg(groups))


if __name__ == "__main__":
    main()
