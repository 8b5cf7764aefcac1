from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np

from reports.document import Table
from reports.finding import worst_first
from reports.render.json import to_json


def strict(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_findings_come_whole_and_worst_first(sick):
    content = strict(to_json(sick))
    assert content["schema_version"] == 1
    assert [each["claim"] for each in content["findings"]] == [each.claim for each in worst_first(sick.findings)]
    worst = content["findings"][0]
    assert (worst["value"], worst["error"], worst["kind"]) == (2.314, 0.021, "residual")
    assert set(worst) >= {"id", "level", "how", "threshold", "meaning", "advice", "evidence", "method", "citation"}


def test_what_is_not_finite_is_null(sick):
    content = strict(to_json(sick))
    undetermined = next(each for each in content["findings"] if each["id"] == "noise/scale")
    assert undetermined["value"] is None
    assert undetermined["kind"] == "standard error"


def test_unmeasured_finding_has_no_value(sick):
    nothing = replace(sick.findings[0], value=None)
    (finding,) = strict(to_json(replace(sick, findings=(nothing,))))["findings"]
    assert (finding["value"], finding["error"], finding["kind"], finding["how"]) == (None, None, None, None)


def test_tables_come_whole(sick, empty):
    content = strict(to_json(sick))
    assert [each["id"] for each in content["figures"]] == [each.id for each in sick.figures]
    assert len(content["figures"][0]["table"]["rows"]) == 3000
    assert strict(to_json(empty))["skipped"]["rows"] == []


def test_numpy_numbers_are_numbers(empty):
    row = (np.float32(0.5), np.int64(3), np.float64(math.inf), "text", None)
    content = strict(to_json(replace(empty, methods=Table(tuple("abcde"), (row,)))))
    assert content["methods"]["rows"] == [[0.5, 3, None, "text", None]]


def test_names_that_are_not_utf8_can_be_written(empty):
    text = to_json(replace(empty, title="run-\udc80"))
    assert strict(text)["title"] == "run-\udc80"
    text.encode("utf-8")
