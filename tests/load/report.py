"""What the load showed: a table in Markdown, and a picture."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

HEAD = "| server | clients | requests | tokens/s | of alone | latency p50, p99 s | first token p50, p99 s | errors | MiB, begin and end |"


def table(outcomes):
    """One row a server and number of clients; `outcomes`: (name, whether shifted, cells), each shifted one after its host alone."""
    lines = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    alone = {}
    for name, shifted, cells in outcomes:
        for cell in cells:
            speed = cell.tokens() / cell.seconds
            share = f"{100 * speed / alone[cell.clients]:.0f} %" if shifted and alone.get(cell.clients) else ""
            if not shifted:
                alone[cell.clients] = speed
            latency = ", ".join(f"{cell.quantile(q):.2f}" for q in (0.5, 0.99))
            first = ", ".join(f"{cell.quantile(q, lambda a: a.first):.2f}" for q in (0.5, 0.99))
            memory = ", ".join(f"{cell.memory[at][1]:.0f}" for at in (0, -1))
            row = [name, cell.clients, len(cell.answers), f"{speed:.0f}", share, latency, first, len(cell.errors()), memory]
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def plot(outcomes, path):
    """Throughput and latency over clients, memory over time."""
    figure, (speed, latency, memory) = plt.subplots(1, 3, figsize=(15, 4.5))
    for (name, shifted, cells), colour in zip(outcomes, ("tab:blue", "tab:blue", "tab:orange", "tab:orange")):
        style = {"color": colour, "linestyle": "-" if shifted else "--", "marker": "o" if shifted else "x"}
        clients = [cell.clients for cell in cells]
        speed.plot(clients, [cell.tokens() / cell.seconds for cell in cells], label=name, **style)
        latency.plot(clients, [cell.quantile(0.5) for cell in cells], label=f"{name}, p50", **style)
        latency.plot(clients, [cell.quantile(0.99) for cell in cells], alpha=0.4, label=f"{name}, p99", **style)
        points = [point for cell in cells for point in cell.memory]
        memory.plot([t / 60 for t, _ in points], [m for _, m in points], label=name, **(style | {"marker": ""}))
    for axes, title, x in ((speed, "tokens/s", "clients"), (latency, "latency, s", "clients"), (memory, "resident MiB", "minutes")):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
    for axes in (speed, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(c) for c in clients])
    speed.set_ylim(bottom=0)
    memory.set_ylim(bottom=0)
    latency.set_yscale("log")
    for axes in (speed, latency, memory):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
