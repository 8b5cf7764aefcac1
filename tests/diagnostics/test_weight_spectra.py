"""Weight matrices against closed forms and slow twins, whatever their size, layout and dtype; and what is not taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, MatrixSpectrum, weight_spectra
from diagnostics.weights import rows as rows_module
from diagnostics.weights import singular_values as singular_module
from tests.reference import weight_loops


def _row(weight: Tensor, **settings: Any) -> MatrixSpectrum:
    (row,) = weight_spectra({"weight": weight}, **{"draws": 0, **settings}).rows
    return row


def _orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


@pytest.fixture(params=["decomposed", "from the Gram matrix"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the singular values, and blocks that end in the middle of things."""
    if request.param == "from the Gram matrix":
        monkeypatch.setattr(singular_module, "SMALL", 0)
        monkeypatch.setattr("diagnostics.weights.blocks.BLOCK", 37)
    return str(request.param)


@pytest.mark.usefixtures("route")
def test_an_orthogonal_matrix_is_1_in_every_direction() -> None:
    row = _row(3 * _orthogonal(24))
    for estimate, value in (
        (row.spectral_norm, 3),
        (row.operator_norm, 3),
        (row.condition, 1),
        (row.stable_rank, 24),
        (row.effective_rank, 24),
    ):
        assert estimate is not None
        assert estimate.value == pytest.approx(value, rel=1e-12)
    assert (row.zero_rows, row.repeated_rows, row.note) == (0, 0, "")


@pytest.mark.usefixtures("route")
def test_a_matrix_of_rank_one_has_one_direction_and_no_condition_number() -> None:
    left, right = torch.randn(20, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    row = _row(torch.outer(left, right))
    assert row.spectral_norm is not None
    assert row.spectral_norm.value == pytest.approx(float(left.norm() * right.norm()), rel=1e-12)
    assert row.stable_rank is not None
    assert row.stable_rank.value == pytest.approx(1)
    assert row.effective_rank is not None
    assert row.effective_rank.value == pytest.approx(1, rel=1e-5)
    assert row.condition is not None
    assert not row.condition.determined
    assert "the smallest singular value is rounding: above" in row.condition.how
    assert row.repeated_rows == 19, "all rows are one row"


@pytest.mark.parametrize("ratio", [(1, "k"), (0.5, "2^-k")])
def test_ranks_of_known_spectra(ratio: tuple[float, str]) -> None:
    """The rows of the target table: σ = 1/k of 100 and .5^k of 20."""
    harmonic = ratio[1] == "k"
    values = 1 / torch.arange(1.0, 101, dtype=torch.float64) if harmonic else 0.5 ** torch.arange(1.0, 21).double()
    row = _row(_orthogonal(len(values)) @ torch.diag(values) @ _orthogonal(len(values)))
    assert row.effective_rank is not None
    assert row.stable_rank is not None
    assert row.effective_rank.value == pytest.approx(39.677 if harmonic else 3.99994, rel=1e-5)
    assert row.stable_rank.value == pytest.approx(1.63498 if harmonic else 4 / 3, rel=1e-5)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (9, 9), (8, 3, 2, 2), (2, 40), (5, 1), (1, 7)])
def test_every_shape_against_a_dense_decomposition(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    norm, condition, stable, effective = weight_loops.ranks(weight)
    row = _row(weight)
    rows, columns = row.matrix
    for estimate, value in (
        (row.spectral_norm, norm),
        (row.operator_norm, norm * math.sqrt(columns / rows)),
        (row.condition, condition),
        (row.stable_rank, stable),
        (row.effective_rank, effective),
    ):
        assert estimate is not None
        assert estimate.value == pytest.approx(value, rel=1e-8)
    assert row.singular_values is not None
    torch.testing.assert_close(row.singular_values, torch.linalg.svdvals(weight.flatten(1)), rtol=1e-8, atol=1e-8)


def test_the_error_of_a_condition_number_from_the_gram_matrix_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular_module, "SMALL", 0)
    values = torch.logspace(0, -6, 40, dtype=torch.float64)
    row = _row(_orthogonal(40) @ torch.diag(values) @ _orthogonal(40))
    assert row.condition is not None
    assert row.condition.kind == "residual"
    assert abs(row.condition.value - 1e6) <= row.condition.error < 0.1 * 1e6


def test_a_long_smaller_side_leaves_the_largest_value_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diagnostics.weights.blocks.BLOCK", 1000)
    weight = torch.randn(70, 60)
    whole, row = _row(weight), _row(weight, max_side=59)
    for name in ("spectral_norm", "operator_norm", "stable_rank"):
        estimate, truth = getattr(row, name), getattr(whole, name)
        assert estimate.kind == "residual"
        assert abs(estimate.value - truth.value) <= estimate.error + 1e-9
        assert estimate.error < 0.01 * truth.value
    assert (row.condition, row.effective_rank, row.power_law, row.singular_values) == (None, None, None, None)
    assert "singular values but the largest not taken: the smaller side is above 59" in row.note
    assert (row.zero_rows, row.repeated_rows) == (0, 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_largest_value_alone_is_within_its_error(dtype: torch.dtype, scale: float) -> None:
    """Of a flat spectrum and of a lone value, in the precision that the weight holds and at every scale."""
    for lone in (0.0, 40.0):
        weight = torch.randn(90, 200, dtype=torch.float64)
        weight[:, 0] += lone
        weight = (scale * weight).to(dtype)
        (norm,) = (row.spectral_norm for row in weight_spectra({"weight": weight}, max_side=80).rows)
        truth = weight_loops.ranks(weight)[0]
        assert norm is not None
        assert abs(norm.value - truth) <= norm.error < 1e-3 * truth


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_low_precision_is_measured_as_the_numbers_it_holds(dtype: torch.dtype) -> None:
    weight = torch.randn(12, 10).to(dtype)
    row, wide = _row(weight), _row(weight.double())
    assert row.dtype == str(dtype).removeprefix("torch.")
    for name in ("spectral_norm", "condition", "stable_rank", "effective_rank", "normal_distance"):
        assert getattr(row, name).value == pytest.approx(getattr(wide, name).value, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e-40])
def test_the_scale_changes_norms_and_nothing_else(scale: float) -> None:
    weight = torch.randn(20, 16, dtype=torch.float64)
    weight[3], weight[5] = 0.0, weight[7]
    plain, scaled = _row(weight), _row(scale * weight)
    for name in ("condition", "stable_rank", "effective_rank", "normal_distance", "uniform_distance"):
        assert getattr(scaled, name).value == pytest.approx(getattr(plain, name).value, rel=1e-9)
    assert plain.spectral_norm is not None
    assert scaled.spectral_norm is not None
    assert scaled.spectral_norm.value == pytest.approx(scale * plain.spectral_norm.value, rel=1e-12)
    assert (scaled.zero_rows, scaled.repeated_rows) == (plain.zero_rows, plain.repeated_rows) == (1, 1)
    assert scaled.power_law is not None
    assert plain.power_law is not None
    assert scaled.power_law.exponent.value == pytest.approx(plain.power_law.exponent.value, rel=1e-9)


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels last", "requires grad"])
def test_layouts_do_not_matter(layout: str) -> None:
    weight = {
        "transposed": torch.randn(10, 14).t(),
        "strided": torch.randn(14, 40)[:, ::4],
        "channels last": torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last),
        "requires grad": torch.randn(5, 5, requires_grad=True),
    }[layout]
    row, plain = _row(weight), _row(weight.detach().clone(memory_format=torch.contiguous_format))
    assert row.spectral_norm is not None
    assert plain.spectral_norm is not None
    assert row.spectral_norm.value == pytest.approx(plain.spectral_norm.value, rel=1e-12)
    assert row.stable_rank is not None
    assert plain.stable_rank is not None
    assert row.stable_rank.value == pytest.approx(plain.stable_rank.value, rel=1e-9)


@pytest.mark.parametrize("gram", [True, False], ids=["by the Gram matrix", "by projections"])
def test_planted_zero_and_repeated_rows_are_counted(gram: bool) -> None:
    """Copies, negatives, multiples, near copies on both sides of the limit, and chains of them."""
    weight = torch.randn(60, 40, dtype=torch.float64)
    weight[[3, 50]] = 0.0
    weight[10], weight[11], weight[12] = weight[1], -2 * weight[1], 1e-3 * weight[1]
    noise = torch.nn.functional.normalize(torch.randn(40, dtype=torch.float64), dim=0) * weight[2].norm()
    weight[20], weight[21] = weight[2] + 0.013 * noise, weight[4] + 0.03 * noise
    matrix_gram = weight @ weight.T if gram else None
    found = rows_module.read_rows(weight, matrix_gram)
    assert (found.zero, found.repeated, found.note) == (2, 4, "")
    assert weight_loops.repeated_rows(weight) - 1 == 3, "the twin counts zero rows as rows of their own"


@pytest.mark.parametrize("seed", range(4))
def test_projections_find_what_comparing_all_pairs_finds(seed: int) -> None:
    """In ten dimensions some rows come near the limit by themselves; clusters straddle it."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    weight = centres.repeat(8, 1) + 0.006 * torch.randn(96, 10, generator=generator, dtype=torch.float64)
    weight *= torch.where(torch.rand(96, 1, generator=generator) < 0.5, -1.0, 1.0)
    found = rows_module.read_rows(weight)
    assert found.repeated == weight_loops.repeated_rows(weight)
    assert found.repeated == rows_module.read_rows(weight, weight @ weight.T).repeated


def test_many_copies_are_counted_and_too_many_near_copies_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MOST_PAIRS", 500)
    one = torch.randn(1, 30)
    assert rows_module.read_rows(one.expand(400, 30)).repeated == 399
    found = rows_module.read_rows(one + 0.008 * torch.randn(400, 30))
    assert (found.repeated, found.note) == (None, "too many rows are nearly alike to compare all of them")


def test_short_rows_are_not_compared() -> None:
    assert _row(torch.randn(50, 2)).note == "repeated rows not taken: rows of fewer than 8 numbers are alike by chance"
    assert _row(torch.randn(50, 2)).repeated_rows is None


@pytest.mark.parametrize("seed", range(3))
def test_random_matrices_have_no_zero_or_repeated_rows(seed: int) -> None:
    torch.manual_seed(seed)
    for shape in ((500, 8), (500, 64), (64, 500), (40, 3, 3, 3)):
        row = _row(torch.randn(shape))
        assert (row.zero_rows, row.repeated_rows) == (0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_counted_and_nothing_else_is_said(value: float) -> None:
    weight = torch.randn(6, 9)
    weight[2, 3] = weight[4, 4] = value
    row = _row(weight)
    assert row.entries is not None
    assert row.entries.non_finite == 2
    assert row.note == "2 entries are NaN or infinite"
    assert row.spectral_norm is None


def test_what_is_no_weight_matrix_is_passed_over_or_says_why() -> None:
    found = weight_spectra(
        {
            "bias": torch.zeros(3),
            "step": torch.tensor(4.0),
            "extra": "text",
            "zero": torch.zeros(3, 4),
            "empty": torch.zeros(0, 4),
            "index": torch.arange(4).reshape(2, 2),
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "complex": torch.ones(2, 2, dtype=torch.complex64),
            "sparse": torch.eye(3).to_sparse(),
            "meta": torch.ones(2, 2, device="meta"),
            "float4": torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        }
    )
    notes = {row.name: row.note for row in found.rows}
    assert list(notes) == ["zero", "empty", "index", "mask", "complex", "sparse", "meta", "float4"]
    assert notes["zero"] == "all zero"
    assert notes["empty"] == "no entries"
    assert notes["index"] == notes["mask"] == "whole numbers: indices, a mask, or weights whose scales stand elsewhere"
    assert notes["complex"].startswith("complex tensors are not taken")
    assert notes["sparse"] == "sparse_coo tensors are not taken: make them dense first"
    assert notes["meta"] == "a meta tensor: a shape without values"
    assert notes["float4"].startswith("could not be read as numbers: ")
    assert all(row.spectral_norm is None for row in found.rows)
    assert "complex tensors are not taken" in str(found)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_nested_tensors_are_refused_clearly() -> None:
    assert _row(torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)).note.startswith("quantised tensors")
    assert _row(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])).note == "nested tensors are not taken"


def test_tied_weights_are_measured_once_and_say_so() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    first, second = weight_spectra(model.state_dict()).rows
    assert second.note == "the same tensor as 0.weight"
    assert second.spectral_norm == first.spectral_norm
    assert first.note == ""


def test_pairs_are_asked_for_one_at_a_time_and_not_kept() -> None:
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Any:
        for index in range(4):
            assert sum(reference() is not None for reference in alive) <= 1
            tensor = torch.randn(6, 9)
            alive.append(weakref.ref(tensor))
            yield f"layer {index}", tensor
            del tensor

    read: list[str] = []
    found = weight_spectra(stream(), draws=0, read=lambda name, tensor: read.append(name))
    assert [row.name for row in found.rows] == list(dict.fromkeys(read)) == [f"layer {index}" for index in range(4)]
    assert all(row.note == "" for row in found.rows), "an address that is used again is not a tied tensor"


def test_nothing_given_is_changed() -> None:
    for dtype in (torch.float64, torch.float32):
        weight = torch.randn(30, 20, dtype=dtype)
        before = weight.clone()
        with torch.inference_mode():
            _row(weight, draws=3)
        assert torch.equal(weight, before)


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = weight_spectra(nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 3)).state_dict())
    frame = table.to_pandas()
    assert frame.loc[0, "name"] == "0.weight"
    assert {"spectral_norm", "condition_error", "exponent", "p_value", "half_vanishing", "note"} <= set(frame.columns)
    assert str(table).splitlines()[0].split() == [
        *("matrix", "shape", "norm", "rms→rms", "condition", "stable", "effective", "exponent")
    ]
    assert repr(table) == str(table)
    assert str(weight_spectra({})) == "no weight matrix"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (nn.Linear(2, 2), r"given: Linear; .*try: model.state_dict\(\)"),
        (torch.ones(2, 2), "given: Tensor"),
        (3, "given: int"),
        ("weights", "given: str"),
        ([torch.ones(2, 2)], "given: an entry of type Tensor"),
    ],
)
def test_refusals(given: Any, words: str) -> None:
    with pytest.raises(DiagnosticsError, match="state_dict has no tensors by name; " + words):
        weight_spectra(given)


@pytest.mark.parametrize("settings", [{"draws": -1}, {"max_side": 0}, {"draws": 0.5}])
def test_refused_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=f"{next(iter(settings))} is out of range"):
        weight_spectra({}, **settings)
