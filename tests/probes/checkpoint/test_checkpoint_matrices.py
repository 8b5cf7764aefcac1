"""A checkpoint is read one tensor and one piece at a time: the same numbers, without its size in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diagnostics import weight_spectra
from probes.checkpoint import load_checkpoint
from probes.checkpoint.examine import examine, stages
from probes.checkpoint.matrices import spectrum_readings
from probes.checkpoint.resident import Pages


def _model() -> nn.Module:
    model = nn.Sequential(
        nn.Embedding(60, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 24), nn.Linear(24, 60)
    )
    model[4].weight = model[0].weight
    return model


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "safetensors"])
def test_the_numbers_are_those_of_the_tensors_in_memory(kind: str, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in _model().state_dict().items()}
    if kind == "safetensors":
        save_file(state, tmp_path / "last")
    else:
        torch.save(state, tmp_path / "last", _use_new_zipfile_serialization=kind == "torch zip")
    run = examine(tmp_path / "last")
    for row in weight_spectra(state, draws=0).rows:
        for name in ("spectral_norm", "operator_norm", "stable_rank", "effective_rank", "normal_distance"):
            record = run.last("weights", name, row.name)
            assert record is not None
            assert record.value == getattr(row, name).value
        assert row.power_law is not None
        exponent, array = run.last("weights", "exponent", row.name), run.last("weights", "spectral_norm", row.name)
        assert exponent is not None
        assert (exponent.value, exponent.error) == (row.power_law.exponent.value, row.power_law.exponent.error)
        assert array is not None
        assert run.array(array).tolist() == row.singular_values.tolist()
    assert run.last("weights", "norm_width", "2").value == 40


def test_tied_tensors_are_decomposed_once(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "last.pt")
    run = examine(tmp_path / "last.pt")
    assert [record.note for record in run.records if record.layer == "4.weight" and record.name == "rest"] == [
        "the same tensor as 0.weight"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="pages are handed back on Linux only")
@pytest.mark.parametrize("kind", ["torch zip", "safetensors"])
def test_memory_is_that_of_a_piece_and_not_of_the_file(kind: str, tmp_path: Path) -> None:
    """160 MB in four tensors, of which a quarter would be one tensor's; the bound is a tenth."""
    path, tensors = tmp_path / "last", {f"layer {index}": torch.randn(5_000, 2_000) for index in range(4)}
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    code = """
import sys
from pathlib import Path
import torch
from probes.checkpoint import load_checkpoint, survey
from probes.checkpoint.resident import Pages
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
survey({"warm": torch.ones(300_000)})
before = resident()
parameters = load_checkpoint(sys.argv[1]).parameters
rows = survey(parameters, Pages(Path(sys.argv[1])).let_go)
print(resident() - before, sum(row.elements for row in rows))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    grown, elements = map(int, done.stdout.split())
    assert elements == 40_000_000
    assert grown < 16e6


@pytest.mark.parametrize("change", ["before", "never", "elsewhere"])
def test_handing_pages_back_loses_nothing(change: str, tmp_path: Path) -> None:
    """A mapping that was written to is left alone, as is ordinary memory of any layout."""
    torch.save({"w": torch.arange(100_000.0), "v": torch.zeros(100_000)}, tmp_path / "last.pt")
    mapped = load_checkpoint(tmp_path / "last.pt").parameters
    if change != "never":
        mapped["w" if change == "before" else "v"][5] = -1.0
    expected = {name: tensor.clone() for name, tensor in mapped.items()}
    pages = Pages(tmp_path / "last.pt")
    plain = (torch.ones(9_000)[::7], torch.eye(3).to_sparse(), torch.ones(3, device="meta"), torch.zeros(0))
    for tensor in (*mapped.values(), *plain):
        pages.let_go(tensor)
    assert all(torch.equal(mapped[name], expected[name]) for name in mapped)
    assert bool((plain[0] == 1).all())


def test_progress_goes_from_nothing_to_nearly_all(tmp_path: Path) -> None:
    shares: list[float] = []
    readings = list(spectrum_readings(_model().state_dict(), part=shares.append))
    assert readings
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert len(shares) == 3, "one for each matrix, tied ones counting once"
    assert shares[-1] < 1.0
    torch.save(_model().state_dict(), tmp_path / "last.pt")
    told: list[str] = []
    examine(tmp_path / "last.pt", progress=told.append, part=shares.append)
    assert told == ["opening the file", "surveying tensors", "decomposing matrices"]
    assert told == list(stages(None, None))


def test_matrices_are_left_out_where_other_probes_were_named(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "last.pt")
    run = examine(tmp_path / "last.pt", only=["sharpness"])
    assert len(stages(None, ["sharpness"])) == 2
    assert run.last("weights", "norm", "0.weight") is not None
    assert run.last("weights", "spectral_norm", "0.weight") is None
    assert examine(tmp_path / "last.pt", only=["weights"]).last("weights", "spectral_norm", "0.weight") is not None


def test_a_damaged_optimizer_state_leaves_the_rest_standing(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": 1, "exp_avg_sq": 2, "step": "x"}}, "param_groups": [{"lr": 1, "params": [0]}]}
    optimizer["param_groups"][0] |= {"betas": 3, "eps": None}
    torch.save({"model": _model().state_dict(), "optimizer": optimizer}, tmp_path / "last.pt")
    run = examine(tmp_path / "last.pt")
    (silent,) = (record for record in run.records if record.name == "adam_signal")
    assert silent.status == "skipped"
    assert "optimizer_state cannot be read" in silent.note
