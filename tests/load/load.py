#!/usr/bin/env python3
"""Many clients at once, against `proxytune serve` and a llama-server with the plugin, beside their engines alone.

Ends with 1 where an answer is missing, is not that of a quiet server, or where something grows. `scripts/load.sh` builds what this needs.
"""

import argparse
import asyncio
import pathlib
import sys
import tempfile

import report
import servers
import workload

# MiB that a server may be larger at the end of a cell than in its middle.
GROWTH = 16


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="of load in all [default: %(default)s]")
    parser.add_argument("--clients", default="1,16,64,256", help="how many at once [default: %(default)s]")
    parser.add_argument("--proxytune", type=pathlib.Path, help="the program, built with the feature serve")
    parser.add_argument("--llama-bin", type=pathlib.Path, help="folder with llama-server")
    parser.add_argument("--plugin", type=pathlib.Path, help="libproxytune_llama.so")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for load.md and load.svg")
    return parser.parse_args()


def settled(server, shifted, answered, tokens):
    """What the server's own figures say after the load, as far as it is not well."""
    metrics = server.metrics()
    get = lambda name: metrics.get(name, 0)  # noqa: E731
    if "llama" in server.name:
        expected = {"llamacpp:requests_processing": 0, "llamacpp:requests_deferred": 0, "llamacpp:tokens_predicted_total": tokens}
        if shifted:
            said = [line for line in server.output().splitlines() if line.startswith("proxytune: ")]
            if len(said) != 1 or "shifting by" not in said[0]:
                yield f"the plugin says {said}"
    else:
        expected = {
            'proxytune_requests_total{route="completions",status="200"}': answered,
            "proxytune_running_sequences": 0,
            "proxytune_waiting_requests": 0,
            "proxytune_unshifted_tokens_total": 0,
            "proxytune_generated_tokens_total": tokens,
        }
        if any(value for name, value in metrics.items() if name.startswith("proxytune_failures_total")):
            yield "proxies have failed"
    for name, value in expected.items():
        if get(name) != value:
            yield f"{name} is {get(name):.0f}, {value} was expected"


async def load(server, shifted, clients, seconds):
    """All cells of one server, and what is wrong."""
    wrong, cells = [], []
    async with workload.session() as session:
        client = workload.Client(server, session)
        tokens = await client.learn()
        answered = len(client.quiet)
        for count in clients:
            cell = await workload.run(client, count, seconds)
            cells.append(cell)
            answered += len(cell.answers)
            tokens += cell.tokens()
            print(f"{server.name}, {count} clients: {len(cell.answers)} answers in {cell.seconds:.0f} s", flush=True)
            wrong += [f"{count} clients: {error}" for error in sorted(set(cell.errors()))[:5]]
            grown = cell.memory[-1][1] - cell.memory[len(cell.memory) // 2][1]
            if grown > GROWTH:
                wrong.append(f"{count} clients: {grown:.0f} MiB more at the end than in the middle")
    if not wrong:
        wrong += settled(server, shifted, answered, tokens)
    if (code := server.stop()) != 0:
        wrong.append(f"it ended with {code}")
    return cells, [f"{server.name}: {what}" for what in wrong]


def main():
    args = arguments()
    clients = [int(n) for n in args.clients.split(",")]
    starts = []
    with tempfile.TemporaryDirectory() as scratch:
        for shifted in (False, True):
            if args.proxytune:
                starts.append((shifted, lambda s=shifted: servers.serve(args.proxytune, s)))
        for shifted in (False, True):
            if args.llama_bin:
                starts.append((shifted, lambda s=shifted: servers.llama_server(args.llama_bin, args.plugin, s, scratch)))
        seconds = 60 * args.minutes / (len(starts) * len(clients))
        outcomes, wrong = [], []
        for shifted, start in starts:
            with start() as server:
                cells, found = asyncio.run(load(server, shifted, clients, seconds))
                outcomes.append((server.name, shifted, cells))
                wrong += found
    args.out.mkdir(parents=True, exist_ok=True)
    table = report.table(outcomes)
    (args.out / "load.md").write_text(table + "\n")
    report.plot(outcomes, args.out / "load.svg")
    print(f"\n{table}\n\n{args.out / 'load.md'} {args.out / 'load.svg'}")
    for what in wrong:
        print(f"wrong: {what}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
