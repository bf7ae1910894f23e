"""The figures of a run as a table and as a picture."""

from html import escape

WIDTH, LEFT, BAR, GAP = 960, 400, 22, 46
HOST, NAIVE, OURS, DRAFTS = "#8a8a8a", "#d9a45b", "#1f6fc4", "#1d7d4f"


def colour(way: str) -> str:
    if way == "host alone":
        return HOST
    if not way.startswith("proxytune"):
        return NAIVE
    return DRAFTS if "drafts" in way else OURS


# title of a trio → [(engine, way, tokens/s)]
Figures = dict[str, list[tuple[str, str, float]]]


def table(figures: Figures) -> str:
    """Markdown."""
    lines = []
    for title, rows in figures.items():
        hosts = {engine: rate for engine, way, rate in rows if way == "host alone"}
        lines += [f"**{title}**", "", "| engine | way | tokens/s | of its host alone |", "| --- | --- | --- | --- |"]
        lines += [f"| {e} | {way} | {rate:.1f} | {rate / hosts[e]:.0%} |" for e, way, rate in rows]
        lines.append("")
    return "\n".join(lines)


def svg(figures: Figures, note: str) -> str:
    """Bars, each trio to its own scale."""
    y, parts = 34, [f'<text x="12" y="22" font-size="14">Tokens a second, one sequence. {escape(note)}</text>']
    for title, rows in figures.items():
        y += GAP
        parts.append(f'<text x="12" y="{y - 12}" font-weight="bold">{escape(title)}</text>')
        most = max(rate for *_, rate in rows)
        for engine, way, rate in rows:
            wide = (WIDTH - LEFT - 90) * rate / most
            middle = y + BAR * 0.7
            parts += [
                f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(f"{engine}: {way}")}</text>',
                f'<rect x="{LEFT}" y="{y + 3}" width="{wide:.1f}" height="{BAR - 5}" fill="{colour(way)}"/>',
                f'<text x="{LEFT + wide + 6:.1f}" y="{middle:.0f}">{rate:.1f}</text>',
            ]
            y += BAR
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 16}" font-family="system-ui, sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"]) + "\n"
