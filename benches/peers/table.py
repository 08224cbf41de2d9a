"""Reads figures (peer, database, column, value; tabs between) and prints, for each database, a table of the medians of
all rounds with the least and the most, and Showrunner's median divided by that of the best peer.

    table.py figures.tsv 'enqueue=enqueue one by one, jobs/s' 'p50=latency p50, ms' ...

In columns of ms less is better, in others more. Redis stands beside PostgreSQL, because both are servers; RocksDB
beside SQLite, because both are in the program.
"""

import statistics
import sys
from collections import defaultdict

OURS = "Showrunner"
BESIDE = {"Redis": "PostgreSQL", "RocksDB": "SQLite"}


def digits(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(values):
    if not values:
        return "–"
    middle = digits(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({digits(min(values))} – {digits(max(values))})"


def row(cells):
    print("| " + " | ".join(cells) + " |")


def main(path, *columns):
    columns = [column.split("=", 1) for column in columns]
    figures, notes = defaultdict(list), []
    for line in open(path, encoding="utf-8"):
        peer, database, column, value = line.rstrip("\n").split("\t")
        if column == "note":
            notes.append(f"{peer}: {value}")
        else:
            figures[peer, database, column].append(float(value))
    rows = list(dict.fromkeys((peer, database) for peer, database, _ in figures))
    for group in ("PostgreSQL", "SQLite"):
        members = [it for it in rows if BESIDE.get(it[1], it[1]) == group]
        if not members:
            continue
        members.sort(key=lambda it: it[0] != OURS)
        print()
        row([group] + [title for _, title in columns])
        row(["---"] + ["---:"] * len(columns))
        for peer, database in members:
            named = peer if database == group else f"{peer} ({database})"
            row([named] + [cell(figures.get((peer, database, column))) for column, _ in columns])
        ratios = []
        for column, title in columns:
            medians = {
                peer: statistics.median(figures[peer, database, column])
                for peer, database in members
                if figures.get((peer, database, column))
            }
            ours = medians.pop(OURS, None)
            if ours is None or not medians:
                ratios.append("–")
                continue
            best = (min if title.endswith("ms") else max)(medians, key=medians.get)
            ratios.append(f"**{ours / medians[best]:.2f}** ({best})")
        row([f"{OURS} ÷ the best peer"] + ratios)
    if notes:
        print("\nMissing:\n")
        for text in dict.fromkeys(notes):
            print(f"- {text}")


main(*sys.argv[1:])
