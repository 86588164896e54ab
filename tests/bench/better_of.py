#!/usr/bin/env python3
"""Tells by how much kontor beats the better of the two Synapses: the median of the ratios taken within each round.

    tests/bench/better_of.py OUT/results.json
"""
import json
import statistics
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    results = json.load(file)
print(f"{'figure':34} {'better Synapse':>15} {'kontor':>12} {'ratio':>8}")
for name in results["order"]:
    series = results["series"].get(name, {})
    lower = series.get("better") == "lower"
    values = series.get("values", {})
    if "kontor" not in values or series.get("better") not in ("lower", "higher"):
        continue
    pick = min if lower else max
    ratios, peers = [], []
    for number, ours in values["kontor"].items():
        theirs = [values[peer][number] for peer in ("sqlite", "postgres") if number in values.get(peer, {})]
        if not theirs:
            continue
        best = pick(theirs)
        peers.append(best)
        worse, better = (best, ours) if lower else (ours, best)
        if better:
            ratios.append(worse / better)
    if ratios:
        ours = statistics.median(values["kontor"].values())
        print(f"{name:34} {statistics.median(peers):15.4g} {ours:12.4g} {statistics.median(ratios):7.1f}x")
