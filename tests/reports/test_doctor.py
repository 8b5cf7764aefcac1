"""The doctor says what works; what is not there and need not be is no fault, what is needed and broken is."""

from __future__ import annotations

import json

import pytest

from reports.command_line import main
from reports.doctor import checks as asked
from reports.doctor.check import AbsentError, tried


def test_all_that_is_needed_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = {(check["group"], check["name"]): check for check in answer["checks"]}
    assert answer["ok"]
    assert found["libraries", "torch"]["outcome"] == "ok"
    for route in ("double backward", "central differences"):
        assert found[asked.PRODUCTS, route]["outcome"] == "ok"
    assert found["attention", "math"]["found"].endswith("with second derivatives")
    assert all(check["needed_for"] for check in found.values())


def test_what_is_needed_and_broken_is_code_1(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("no such thing. And much more")

    def some():
        yield tried("reports", "fonts", "figures", broken)
        yield tried("optional", "lightning", "models of Lightning", broken, needed=False)

    monkeypatch.setattr("reports.doctor.show.checks", some)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✗ broken" in out
    assert "– missing" in out
    assert "RuntimeError: no such thing; for figures" in out
    assert out.rstrip().endswith("Broken: fonts.")
    assert all(len(line) <= 80 for line in out.splitlines())


def test_what_is_not_there_says_so_without_the_name_of_a_class() -> None:
    def nothing() -> str:
        raise AbsentError("none seen")

    assert tried("devices", "cuda", "models on a GPU", nothing, needed=False).found == "none seen"
