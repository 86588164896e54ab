"""Runs the unittest files (test_*.py) of a folder and ends with the line "N passed, N failed".

usage: run_unittests.py FOLDER [NAME_PART ...]
"""
import sys
import time
import unittest


class Lines(unittest.TestResult):
    """One line for each test, the reason for each failure."""

    passed = 0

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def say(self, word, test):
        milliseconds = (time.monotonic() - self.began) * 1000
        print(f"{word:5} {test.id()} ({milliseconds:.0f} ms)", flush=True)

    def addSuccess(self, test):
        self.passed += 1
        self.say("ok", test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        print(f"FAIL  {test.id()}\n{self.failures[-1][1]}", flush=True)

    def addError(self, test, error):
        super().addError(test, error)
        print(f"FAIL  {test.id()}\n{self.errors[-1][1]}", flush=True)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            bad = self.failures if issubclass(error[0], test.failureException) else self.errors
            print(f"FAIL  {subtest.id()}\n{bad[-1][1]}", flush=True)

    def addSkip(self, test, reason):
        print(f"skip  {test.id()}: {reason}", flush=True)


def main():
    folder, *parts = sys.argv[1:]
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{part}*" for part in parts] or None
    result = Lines()
    loader.discover(folder).run(result)
    failed = len(result.failures) + len(result.errors)
    print(f"{result.passed} passed, {failed} failed")
    return 1 if failed or not result.passed else 0


sys.exit(main())
