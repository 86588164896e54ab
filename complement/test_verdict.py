"""The judge must see what got worse and what got better, and keep what the nodes said. `make test` runs this."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import verdict


def said(*outcomes):
    """What `go test -json` says of these (test, outcome); None: it began and never ended."""
    lines, second = [], 0
    for test, outcome in outcomes:
        for action in ("run", outcome) if outcome else ("run",):
            second += 1
            event = {"Time": f"2026-01-01T00:00:{second:02}Z", "Action": action, "Test": test}
            lines.append(json.dumps(event | {"Package": verdict.SUITE + "tests/csapi"}))
    return "\n".join(lines) + "\n"


class Verdict(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.here = Path(holder.name)
        (self.here / "out" / "logs").mkdir(parents=True)
        (self.here / "README.md").write_text("before\n<!-- made by run.sh -->\nold\n<!-- end -->\nafter\n")
        for name, file in (("RESULTS", "results.jsonl"), ("README", "README.md"), ("WAITS", "waits.tsv")):
            patch = mock.patch.object(verdict, name, self.here / file)
            patch.start()
            self.addCleanup(patch.stop)
        self.waits("TestB\tlater")

    def waits(self, *rows):
        (self.here / "waits.tsv").write_text("".join(f"tests/csapi\t{row}\n" for row in rows))

    def judge(self, *outcomes, more=()):
        """The exit code and what was printed."""
        arguments = ["verdict", str(self.here / "out"), *more]
        printed = io.StringIO()
        with mock.patch.object(sys, "argv", arguments), mock.patch.object(sys, "stdin", io.StringIO(said(*outcomes))):
            with contextlib.redirect_stdout(printed):
                return verdict.main(), printed.getvalue()

    def written(self):
        rows = map(json.loads, (self.here / "results.jsonl").read_text().splitlines())
        return {row["test"]: row["outcome"] for row in rows}

    def test_the_first_run_is_the_baseline(self):
        code, _ = self.judge(("TestB", "fail"), ("TestA", "pass"), ("TestA/sub", "pass"))
        self.assertEqual(code, 0)
        self.assertEqual(list(self.written().items()), [("TestA", "pass"), ("TestA/sub", "pass"), ("TestB", "fail")])
        readme = (self.here / "README.md").read_text()
        self.assertIn("| tests/csapi | 1 of 2 | 1 of 1 | 0 |", readme)
        self.assertIn("| tests/csapi TestB | later |", readme)
        self.assertTrue(readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme)

    def test_what_got_worse_fails_and_is_not_written(self):
        self.judge(("TestA", "pass"), ("TestB", "fail"))
        for now in ([("TestA", "fail")], [("TestA", "skip")], [("TestA", None)], []):
            code, printed = self.judge(*now, ("TestB", "fail"))
            self.assertEqual(code, 1, now)
            self.assertIn("tests/csapi TestA: pass -> ", printed)
            self.assertEqual(self.written()["TestA"], "pass")

    def test_worse_is_written_where_that_is_asked_for(self):
        self.judge(("TestA", "pass"), ("TestB", "fail"))
        self.waits("TestA\tlater", "TestB\tlater")
        self.judge(("TestA", "fail"), ("TestB", "fail"), more=["--accept"])
        self.assertEqual(self.written(), {"TestA": "fail", "TestB": "fail"})

    def test_what_got_better_is_written_by_a_full_run_only(self):
        self.judge(("TestA", "pass"), ("TestB", "fail"))
        code, printed = self.judge(("TestB", "pass"), more=["--part"])
        self.assertEqual(code, 1)
        self.assertIn("tests/csapi TestB: fail -> pass", printed)
        self.assertEqual(self.written()["TestB"], "fail")
        self.waits()
        code, _ = self.judge(("TestA", "pass"), ("TestB", "pass"))
        self.assertEqual((code, self.written()["TestB"]), (0, "pass"))

    def test_a_part_is_compared_with_its_groups_only(self):
        self.judge(("TestA", "pass"), ("TestA/sub", "pass"), ("TestB", "fail"))
        self.assertEqual(self.judge(("TestB", "fail"), more=["--part"])[0], 0)
        code, printed = self.judge(("TestA", "pass"), more=["--part"])
        self.assertEqual(code, 1)
        self.assertIn("tests/csapi TestA/sub: pass -> absent", printed)

    def test_red_must_be_explained_and_green_must_not(self):
        self.assertEqual(self.judge(("TestC", "fail"), ("TestB", "fail"))[0], 1)
        self.assertEqual(self.judge(("TestC", "pass"), ("TestB", "pass"))[0], 1)

    def test_nothing_is_not_a_success(self):
        self.assertEqual(self.judge()[0], 1)

    def test_a_failed_group_keeps_what_its_node_said(self):
        log = "2026-01-01T00:00:01.5Z before\n2026-01-01T00:00:03.5Z during\nmore of it\n2026-01-01T00:00:09.0Z after\n"
        (self.here / "out" / "logs" / "hs1.log").write_text(log)
        self.judge(("TestA", "pass"), ("TestB", "fail"))
        kept = (self.here / "out" / "failed" / "tests/csapi" / "TestB.log").read_text()
        self.assertIn("hs1.log\n2026-01-01T00:00:03.5Z during\nmore of it\n", kept)
        self.assertNotIn("before", kept)
        self.assertNotIn("after", kept)


if __name__ == "__main__":
    unittest.main()
