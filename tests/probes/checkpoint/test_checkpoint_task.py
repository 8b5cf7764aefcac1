"""Loading a task: every way it can be named, and every way it can be wrong, with the user's own line in the message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from diagnostics import DiagnosticsError
from probes.checkpoint.task import build_task

GOOD = """
import torch
from torch import nn
from diagnostics import Objective

def build(checkpoint):
    model = nn.Linear(2, 1)
    model.load_state_dict(checkpoint["model"])
    return Objective(model, nn.MSELoss(), (torch.ones(4, 2), torch.zeros(4, 1)))

def with_optimizer(checkpoint):
    objective = build(checkpoint)
    return objective, torch.optim.SGD(objective.model.parameters(), lr=0.5)

def with_none(checkpoint):
    return build(checkpoint), None
"""
CHECKPOINT = {"model": {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}}

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Put a task into a file and return its path; nothing of it stays imported."""
    modules, path = set(sys.modules), list(sys.path)

    def put(code: str, name: str = "task.py") -> str:
        (tmp_path / name).write_text(dedent(code))
        return str(tmp_path / name)

    yield put
    assert sys.path == path, "the search path is as it was"
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_file_by_its_path_builds_an_objective(write: Write) -> None:
    objective, optimizer = build_task(write(GOOD), CHECKPOINT)
    assert objective.loss() == pytest.approx(36.0)
    assert optimizer is None


@pytest.mark.parametrize(("name", "kind"), [("build", None), ("with_optimizer", torch.optim.SGD), ("with_none", None)])
def test_a_function_by_its_name(name: str, kind: type | None, write: Write) -> None:
    objective, optimizer = build_task(f"{write(GOOD)}:{name}", CHECKPOINT)
    assert objective.num_parameters == 3
    assert (optimizer is None) if kind is None else isinstance(optimizer, kind)


@pytest.mark.parametrize("task", ["my_package.tasks", "my_package.tasks:build", "my_package.tasks:with_optimizer"])
def test_a_module_in_the_present_folder(
    task: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console script does not have it on its path."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    write(GOOD, "my_package/tasks.py")
    monkeypatch.chdir(tmp_path)
    assert build_task(task, CHECKPOINT)[0].num_parameters == 3


@pytest.mark.parametrize("folder", ["with space", "12:30", "ünï"])
def test_folders_of_any_name(folder: str, write: Write, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    file = write(GOOD, f"{folder}/my-task.py")
    assert build_task(file, CHECKPOINT)[1] is None
    assert build_task(f"{file}:with_optimizer", CHECKPOINT)[1] is not None


def test_a_file_may_import_its_neighbours_also_while_it_builds(write: Write) -> None:
    write("WIDTH = 5", "width_of_it.py")
    write("DEPTH = 1", "depth_of_it.py")
    task = write(
        """
        import torch
        from torch import nn
        from width_of_it import WIDTH
        from diagnostics import Objective

        def build(checkpoint):
            from depth_of_it import DEPTH
            return Objective(nn.Linear(WIDTH, DEPTH), nn.MSELoss(), (torch.ones(4, WIDTH), torch.zeros(4, DEPTH)))
        """
    )
    assert build_task(task, {})[0].num_parameters == 6


def test_classes_that_the_file_defines_can_be_found_by_their_module(write: Write) -> None:
    """Dataclasses and pickling look it up in sys.modules."""
    task = write("from dataclasses import dataclass\n@dataclass\nclass Settings:\n    width: 'int' = 2\n" + GOOD)
    assert build_task(task, CHECKPOINT)[0].num_parameters == 3


def test_a_build_may_change_what_it_is_handed(write: Write) -> None:
    checkpoint = dict(CHECKPOINT)
    build_task(
        write(GOOD + "\n_build = build\ndef build(c):\n    o = _build(c)\n    c.clear()\n    return o\n"), checkpoint
    )
    assert checkpoint.keys() == {"model"}


@pytest.mark.parametrize("device", [None, "cpu", "meta"])
def test_the_device_is_where_the_build_makes_its_tensors(device: str | None, write: Write) -> None:
    code = """
    def build(checkpoint):
        checkpoint["seen"].append(torch.empty(1).device.type)
        with torch.device("cpu"):
            return Objective(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(4, 2), torch.zeros(4, 1)))
    """
    places: list[str] = []
    build_task(write(GOOD + dedent(code)), {"seen": places}, device)
    assert places == [device or "cpu"]
    assert torch.empty(1).device.type == "cpu"


def test_an_unknown_device_is_named_before_anything_runs(write: Write) -> None:
    task = write("raise RuntimeError('must not run')")
    with pytest.raises(DiagnosticsError, match="device is unknown; given: 'gpu'; expected: a torch device such as cpu"):
        build_task(task, {}, "gpu")


RETURNS = {
    "None": ("None", "NoneType"),
    "a model": ("__import__('torch').nn.Linear(1, 1)", "Linear"),
    "the wrong order": ("(None, 3)", r"a tuple of \(NoneType, int\)"),
    "three things": ("(1, 2, 3)", r"a tuple of \(int, int, int\)"),
    "an empty tuple": ("()", "tuple"),
}


@pytest.mark.parametrize("what", RETURNS)
def test_a_wrong_return_says_what_came_and_what_was_expected(what: str, write: Write) -> None:
    code, given = RETURNS[what]
    with pytest.raises(DiagnosticsError, match=f"returned something else; given: {given}; expected: an Objective, or"):
        build_task(write(f"def build(checkpoint):\n    return {code}\n"), {})


BROKEN = {
    "raises": ("def build(checkpoint):\n    x = 1\n    raise ValueError('no weights')\n", "ValueError: no weights", 3),
    "fails in a library": (
        "import torch\ndef build(checkpoint):\n    return torch.nn.Linear(2, 2)(torch.ones(3))\n",
        "RuntimeError: ",
        3,
    ),
    "fails in the standard library": (
        "import json\ndef build(checkpoint):\n    return json.loads('{')\n",
        "JSONDecodeError: ",
        3,
    ),
    "fails in this package": (
        "from diagnostics import Objective\nimport torch\ndef build(checkpoint):\n\n"
        "    return Objective(torch.nn.Linear(1, 1), torch.nn.MSELoss(), [])\n",
        "DiagnosticsError: batches is empty",
        5,
    ),
    "exits": ("import sys\ndef build(checkpoint):\n    sys.exit(2)\n", "SystemExit: 2", 3),
    "asserts": ("def build(checkpoint):\n    assert False\n", "AssertionError: ", 2),
    "takes nothing": ("def build():\n    pass\n", "TypeError: build() takes 0 positional arguments", None),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_build_that_fails_names_the_users_file_and_line(how: str, write: Write) -> None:
    code, message, line = BROKEN[how]
    with pytest.raises(DiagnosticsError) as refusal:
        build_task(write(code), {})
    text = str(refusal.value)
    assert "task.py': build(checkpoint) failed; given: " in text
    assert message in text
    assert text.endswith(f"(task.py, line {line})") or line is None
    assert "\n" not in text


def test_a_key_that_is_missing_is_answered_with_those_that_are_there(write: Write) -> None:
    task = write("def build(checkpoint):\n    return checkpoint['weights']\n")
    message = r"KeyError: 'weights' \(task.py, line 2\); the checkpoint holds "
    with pytest.raises(DiagnosticsError, match=message + "'model', 'step'$"):
        build_task(task, {"model": 1, "step": 2})
    with pytest.raises(DiagnosticsError, match=message + "'0', '1', '2', '3', '4', '5', '6', '7' and 1,992 more$"):
        build_task(task, {str(key): key for key in range(2000)})
    with pytest.raises(DiagnosticsError, match=message + "nothing$"):
        build_task(task, {})


UNIMPORTABLE = {
    "a syntax error": ("def build(checkpoint):\n    return (\n", r"SyntaxError: .*\(task.py, line 2\)$"),
    "a missing module": (
        "\nimport not_there_at_all\n",
        r"ModuleNotFoundError: .*not_there_at_all' \(task.py, line 2\)$",
    ),
    "a script": ("import sys\nsys.exit('usage: train.py')\n", r"SystemExit: usage: train.py \(task.py, line 2\)$"),
    "an error of ours": (
        "from diagnostics import DiagnosticsError\nraise DiagnosticsError('no')\n",
        r"DiagnosticsError: no \(task.py, line 2\)$",
    ),
}


@pytest.mark.parametrize("how", UNIMPORTABLE)
def test_a_file_that_cannot_be_imported_says_where(how: str, write: Write) -> None:
    code, message = UNIMPORTABLE[how]
    with pytest.raises(DiagnosticsError, match=f"task .* cannot be imported; given: {message}"):
        build_task(write(code), {})


def test_names_that_lead_nowhere(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DiagnosticsError, match=r"task file '.*missing.py' does not exist; expected: a Python file"):
        build_task(str(tmp_path / "missing.py"), {})
    with pytest.raises(DiagnosticsError, match=r"task file .* does not exist"):
        build_task(str(tmp_path / "missing.py:build"), {})
    with pytest.raises(DiagnosticsError, match="has no function 'make'; expected: def make"):
        build_task(write("build = 3") + ":make", {})
    with pytest.raises(DiagnosticsError, match="has no function 'build'"):
        build_task(write("build = 3"), {})
    with pytest.raises(DiagnosticsError, match="cannot be imported; given: ModuleNotFoundError: No module named 'not"):
        build_task("not_there_at_all.tasks:build", {})
    with pytest.raises(DiagnosticsError, match="cannot be imported"):
        build_task("", {})
