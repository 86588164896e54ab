"""Reads what `go test -json` says while the suite runs, shows how far it is, and compares it with results.jsonl.

The result of a full run becomes results.jsonl and the tables of README.md, unless something got worse. Everything of a
failed group, what the suite said and what the nodes logged meanwhile, is kept in the directory given.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
README = HERE / "README.md"
WAITS = HERE / "waits.tsv"
SUITE = "github.com/matrix-org/complement/"
OUTCOMES = ("pass", "fail", "skip")
# A node's log is in order but for lines of a moment's difference, and clocks of host and container are the same.
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


def group_of(test):
    return test.split("/", 1)[0]


class Run:
    """What has been said so far."""

    def __init__(self, expected):
        self.expected = expected  # groups of the last full run, or None
        self.outcomes = {}  # (package, test) -> outcome; None while it runs
        self.output = {}  # (package, group) -> lines
        self.span = {}  # (package, group) -> [first, last moment]
        self.broken = []  # packages that did not run to their end
        self.began = time.monotonic()
        self.done = Counter()

    def hear(self, event):
        package = event.get("Package", "").removeprefix(SUITE)
        action, test = event.get("Action"), event.get("Test")
        if not test:
            if action == "output" and event["Output"].startswith(("panic:", "FAIL\t")) and "[" in event["Output"]:
                self.broken.append(f"{package}: {event['Output'].strip()}")
            return
        key = package, group_of(test)
        moment = event.get("Time", "")
        self.span.setdefault(key, [moment, moment])[1] = moment
        if action == "run":
            self.outcomes[package, test] = None
        elif action == "output":
            self.output.setdefault(key, []).append(event["Output"])
        elif action in OUTCOMES:
            self.outcomes[package, test] = action
            if "/" not in test:
                self.done[action] += 1
                self.progress(f"{action} {package} {test}")
                if action == "pass":
                    self.output.pop(key, None)

    def progress(self, what):
        total = f" of about {self.expected}" if self.expected else ""
        count = sum(self.done.values())
        seconds = int(time.monotonic() - self.began)
        line = f"[{count}{total} groups, {self.done['fail']} failed, {seconds // 60}:{seconds % 60:02}] {what}"
        if sys.stdout.isatty():
            print(f"\r\033[K{line[:150]}", end="", flush=True)
        elif count % 10 == 0:
            print(line, flush=True)

    def results(self):
        """Everything that ran, by package and test. What never ended has failed."""
        return {key: outcome or "fail" for key, outcome in sorted(self.outcomes.items())}


def read_results():
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text().splitlines())
    return {(row["package"], row["test"]): row["outcome"] for row in rows}


def write_results(results, path):
    with path.open("w") as file:
        for (package, test), outcome in results.items():
            file.write(json.dumps({"package": package, "test": test, "outcome": outcome}, ensure_ascii=False) + "\n")


def differences(before, after):
    """Lists of what got worse and better. A test that is not there any more counts as one that failed."""
    worse, better = [], []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "absent"), after.get(key, "absent")
        line = f"{key[0]} {key[1]}: {old} -> {new}"
        if old == "pass" and new != "pass":
            worse.append(line)
        elif old != new:
            better.append(line)
    return worse, better


def keep_logs(run, results, directory):
    """One file per failed group: what the suite said, then what each node logged meanwhile."""
    nodes = {path: path.read_text(errors="replace").splitlines() for path in sorted((directory / "logs").glob("*.log"))}
    for package, group in sorted({(p, group_of(t)) for (p, t), outcome in results.items() if outcome == "fail"}):
        first, last = (datetime.fromisoformat(moment) for moment in run.span[package, group])
        path = directory / "failed" / package / f"{group}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(run.output.get((package, group), []))
            for node, lines in nodes.items():
                within, kept = False, []
                for line in lines:
                    stamp = TIME.search(line[:40])
                    if stamp:  # a line without one belongs to the line before it
                        within = first <= datetime.fromisoformat(stamp[0].replace("Z", "+00:00")) <= last
                    if within:
                        kept.append(line)
                if kept:
                    file.write(f"\n==== {node.name}\n" + "\n".join(kept) + "\n")


def read_waits():
    rows = [line.split("\t") for line in WAITS.read_text().splitlines() if line and not line.startswith("#")]
    return {(package, group): feature for package, group, feature in rows}


def tables(results, waits):
    """The part of README.md that is made from the results."""
    lines = ["| package | groups passed | subtests passed | skipped |", "| --- | --- | --- | --- |"]
    totals = Counter()
    for package in sorted({package for package, _ in results}):
        counts = Counter()
        for (_, test), outcome in ((key, value) for key, value in results.items() if key[0] == package):
            kind = "sub" if "/" in test else "group"
            counts[kind, outcome] += 1
            counts[kind] += 1
        totals += counts
        lines.append(table_row(package, counts))
    lines.append(table_row("**all**", totals))
    red = [(p, t) for (p, t), outcome in results.items() if outcome == "fail" and "/" not in t]
    lines += ["", "Red groups, and what they wait for (`waits.tsv`):", "", "| group | waits for |", "| --- | --- |"]
    for key in red:
        part = [outcome for (p, t), outcome in results.items() if p == key[0] and t.startswith(key[1] + "/")]
        passed = f" ({part.count('pass')} of {len(part)} subtests pass)" if "pass" in part else ""
        lines.append(f"| {key[0]} {key[1]}{passed} | {waits.get(key, '**not explained**')} |")
    return "\n".join(lines) + "\n"


def table_row(name, counts):
    skipped = counts["group", "skip"] + counts["sub", "skip"]
    return (
        f"| {name} | {counts['group', 'pass']} of {counts['group']} | {counts['sub', 'pass']} of {counts['sub']} |"
        f" {skipped} |"
    )


def write_readme(results, waits):
    begin, end = "<!-- made by run.sh -->\n", "<!-- end -->"
    before, rest = README.read_text().split(begin)
    README.write_text(before + begin + "\n" + tables(results, waits) + "\n" + end + rest.split(end)[1])


def show(title, lines, most=60):
    if lines:
        more = [f"and {len(lines) - most} more"] if len(lines) > most else []
        print(f"{title}:", *lines[:most], *more, sep="\n  ")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--part", action="store_true", help="not the whole suite: compare what ran, write nothing")
    arguments.add_argument("--accept", action="store_true", help="write the results down even where they are worse")
    asked = arguments.parse_args()

    baseline = read_results()
    run = Run(None if asked.part else sum("/" not in test for _, test in baseline))
    with (asked.directory / "events.jsonl").open("w") as raw:
        for line in sys.stdin:
            raw.write(line)
            if line.startswith("{"):
                run.hear(json.loads(line))
    print()
    results = run.results()
    keep_logs(run, results, asked.directory)
    show("These packages did not run to their end", run.broken)
    if not results:
        print("No test ran.")
        return 1

    if asked.part:
        ran = {(package, group_of(test)) for package, test in results}
        baseline = {key: outcome for key, outcome in baseline.items() if (key[0], group_of(key[1])) in ran}
    worse, better = differences(baseline, results)
    show("Worse than results.jsonl", worse)
    show("Better than results.jsonl, or new", better)
    failed = Counter(outcome for (_, test), outcome in results.items() if "/" not in test)
    if failed["fail"]:
        print(f"What failed groups and their nodes said is in {asked.directory / 'failed'}")

    wrong = bool(worse or run.broken)
    if asked.part:
        if better:
            print("Run the whole suite and commit results.jsonl.")
            wrong = True
    elif wrong and not asked.accept:
        write_results(results, asked.directory / "results.jsonl")
        print(f"results.jsonl stays as it was; these are in {asked.directory / 'results.jsonl'}.")
    else:
        waits = read_waits()
        write_results(results, RESULTS)
        write_readme(results, waits)
        red = {key for key, outcome in results.items() if outcome == "fail" and "/" not in key[1]}
        unexplained = [" ".join(key) for key in sorted(red - waits.keys())]
        show("Red, and waits.tsv does not say what they wait for", unexplained)
        outdated = [" ".join(key) for key in sorted(waits.keys() - red)]
        show("Not red any more: remove these from waits.tsv", outdated)
        wrong = wrong or bool(unexplained or outdated)
    print(f"{failed['pass']} groups pass, {failed['fail']} fail, {failed['skip']} are skipped")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
