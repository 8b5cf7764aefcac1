"""The survey of weights against plain formulas, for every dtype, layout and extreme that a checkpoint may hold."""

import math

import pytest
import torch

from probes.checkpoint import survey
from probes.checkpoint.weights import _PIECE

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.bool]


def _one(tensor):
    [row] = survey({"weight": tensor})
    return row


@pytest.mark.parametrize("dtype", FLOATS + WHOLE, ids=str)
def test_a_row_matches_the_formulas_in_every_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    tensor = (torch.rand(7, 5, generator=generator) * 4).to(dtype)
    plain = tensor.to(torch.float64)
    row = _one(tensor)
    assert (row.name, row.shape, row.dtype) == ("weight", (7, 5), str(dtype).removeprefix("torch."))
    assert (row.elements, row.non_finite, row.note) == (35, 0, "")
    assert row.zeros == pytest.approx(float((plain == 0).double().mean()), abs=1e-15)
    assert row.norm == pytest.approx(float(plain.square().sum().sqrt()), rel=1e-13)
    assert row.rms == pytest.approx(float(plain.square().mean().sqrt()), rel=1e-13)
    assert row.max_abs == float(plain.max())


def test_negative_values_count_by_their_magnitude():
    assert _one(torch.tensor([-3, 2], dtype=torch.int8)).max_abs == 3
    assert _one(torch.tensor([-128], dtype=torch.int8)).max_abs == 128


def test_complex_values_count_by_their_magnitude():
    row = _one(torch.tensor([3 + 4j, 0, complex("nan"), complex(1, math.inf)]).conj())
    assert (row.non_finite, row.zeros, row.norm, row.max_abs) == (2, 0.25, 5.0, 5.0)


@pytest.mark.parametrize("dtype", [*FLOATS[:4], torch.float8_e5m2], ids=str)
def test_nan_and_infinity_are_counted_and_kept_out_of_the_norm(dtype):
    row = _one(torch.tensor([3.0, math.nan, -4.0, math.inf, -math.inf, 0.0]).to(dtype))
    assert (row.non_finite, row.norm, row.max_abs, row.elements) == (3, 5.0, 4.0, 6)
    assert row.rms == pytest.approx(5 / math.sqrt(3))
    assert row.zeros == pytest.approx(1 / 6)


def test_nothing_finite_gives_no_norm_rather_than_zero():
    row = _one(torch.full((3,), math.nan))
    assert (row.non_finite, row.norm, row.rms, row.max_abs) == (3, None, None, None)
    assert row.note == "no finite element"


def test_empty_and_scalar_tensors():
    empty = _one(torch.empty(0, 4))
    assert (empty.elements, empty.norm, empty.rms, empty.zeros, empty.note) == (0, 0.0, None, None, "no elements")
    assert _one(torch.tensor(-2.0)).norm == 2.0
    assert _one(torch.zeros(3)).zeros == 1.0


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_norm_neither_overflows_nor_vanishes(scale):
    row = _one(torch.tensor([3.0, 4.0], dtype=torch.float64) * scale)
    assert row.norm == pytest.approx(5 * scale, rel=1e-14)
    assert row.rms == pytest.approx(5 * scale / math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("layout", ["rows", "transposed", "strided", "expanded"])
def test_pieces_of_any_layout_add_up_to_the_whole(layout):
    """Longer than two pieces, with a first dimension of one, so that halving has to look further."""
    base = torch.randn(1, 3, _PIECE + 7, generator=torch.Generator().manual_seed(1))
    tensor = {
        "rows": base,
        "transposed": base.transpose(1, 2),
        "strided": base[..., ::2],
        "expanded": torch.randn(1, 5).expand(_PIECE, 5),
    }[layout]
    row, plain = _one(tensor), tensor.double()
    assert row.elements == tensor.numel()
    assert row.norm == pytest.approx(float(plain.square().sum().sqrt()), rel=1e-12)
    assert row.max_abs == float(plain.abs().max())


def test_large_tensors_are_never_flattened_or_converted_whole(monkeypatch):
    sizes = []
    from probes.checkpoint import weights

    original = weights._magnitudes
    monkeypatch.setattr(weights, "_magnitudes", lambda piece: sizes.append(piece.numel()) or original(piece))
    _one(torch.zeros(1).expand(5 * _PIECE + 3))
    assert max(sizes) <= _PIECE
    assert sum(sizes) == 5 * _PIECE + 3


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_surveyed_gets_a_row_with_its_reason():
    strange = {
        "meta": torch.ones(2, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float4": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    }
    rows = survey({**strange, "plain": torch.ones(2)})
    assert [row.name for row in rows] == [*strange, "plain"]
    for row in rows[:-1]:
        assert row.note, row.name
        assert row.norm is None, row.name
        assert row.non_finite is None, row.name
    assert rows[-1].norm == pytest.approx(math.sqrt(2))


def test_the_survey_changes_nothing_and_keeps_no_graph():
    weight = torch.nn.Parameter(torch.tensor([-1.0, 2.0], dtype=torch.float64))
    before = weight.detach().clone()
    _one(weight)
    assert torch.equal(weight.detach(), before)
    assert weight.grad is None
