"""Documents to render: a sick run with everything in it, and one with nothing."""

from __future__ import annotations

import gzip

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from reports import palette
from reports.document import Document, Figure, Records, Sheet, Table
from reports.finding import Finding

HOSTILE = "blocks.0.<script>alert('x')</script>&\"attn\".$q^$"
LONG = "model.module.encoder.layers.11.cross_attention.self_attention_projection.lora_adapter.default.weight" * 2
CSV = "step,layer,value\n0,fc1,0.5\n20,<b>,1.5\n"
STEPS = np.arange(0, 5000, 20)
LAYERS = ("stem.conv", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", HOSTILE, "head")


def _ratio() -> Figure:
    rng = np.random.default_rng(0)
    ratio = 2.31 / (1 + np.exp(-(STEPS - 1200) / 350)) + 0.03 * rng.standard_normal(len(STEPS))
    error = 0.05 + 0.05 * ratio

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.fill_between(STEPS, ratio - error, ratio + error, color=palette.BAND, linewidth=0)
        axes.plot(STEPS, ratio, color=palette.SERIES[0], label="λ₁ / threshold ± residual")
        axes.axhline(1.0, color=palette.EDGE, linestyle="--", linewidth=1.2)
        axes.annotate("the edge: λ₁ = 2/η", (0, 1.0), xytext=(4, 4), textcoords="offset points", color=palette.EDGE)
        axes.set(xlabel="step", ylabel="sharpness ÷ threshold")
        axes.legend(loc="upper left")

    rows = tuple((int(step), float(r), float(e)) for step, r, e in zip(STEPS, ratio, error, strict=True))
    return Figure(
        "sharpness-ratio",
        "Sharpness against the edge of stability",
        "The ratio crosses 1 near step 1 200 and stays at 2.3: gradient descent is past the edge.",
        "Line rising from 0.1 to 2.3 over 5000 steps, crossing the threshold line at 1 near step 1200.",
        draw,
        Table(("step", "ratio", "error"), rows),
    )


def _rates() -> Figure:
    def series(place: int) -> np.ndarray:
        return 10.0 ** (-2 - place * 0.6) * np.exp(-STEPS / (2500 + 700 * place))

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for place, layer in enumerate(LAYERS):
            axes.plot(STEPS, series(place), label=layer)
        axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="effective learning rate η / ‖w‖²")
        canvas.legend(loc="outside lower center", ncols=2)

    rows = tuple((int(step), *(float(series(place)[at]) for place in range(6))) for at, step in enumerate(STEPS))
    return Figure(
        "effective-rates",
        "Effective learning rate per layer",
        "Rates fall apart by three orders of magnitude: the head learns while the stem stands still.",
        "Six falling lines on a logarithmic axis between 1e-6 and 1e-2.",
        draw,
        Table(("step", *LAYERS), rows),
        (7.2, 4.4),
    )


def _dormant() -> Figure:
    steps = np.linspace(0, 5000, 26).astype(int)
    share = np.clip(np.linspace(0, 0.9, 26)[None, :] * np.linspace(0.1, 1, 6)[:, None], 0, 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        shades = LinearSegmentedColormap.from_list("dormant", (palette.PAPER, palette.SERIES[0]))
        mesh = axes.pcolormesh(steps, np.arange(6), share, cmap=shades, vmin=0, vmax=1)
        axes.set_yticks(np.arange(6), [layer[:24] for layer in LAYERS])
        axes.set(xlabel="step")
        axes.grid(False)
        canvas.colorbar(mesh, label="share of dormant units")

    rows = tuple((LAYERS[at], *(float(value) for value in share[at, ::5])) for at in range(6))
    return Figure(
        "dormant-map",
        "Dormant units by layer and step",
        "Dormancy grows with depth and never recovers.",
        "Heat map, darker to the right and towards deeper layers.",
        draw,
        Table(("layer", *(f"step {step}" for step in steps[::5])), rows),
    )


def _loss() -> Figure:
    steps = np.arange(3000)
    loss = 2.3 * np.exp(-steps / 900) + 0.08

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(steps, loss)
        axes.set(xlabel="step", ylabel="training loss")

    rows = tuple((int(step), float(value) if step % 97 else None) for step, value in zip(steps, loss, strict=True))
    return Figure(
        "loss", "Training loss", "The loss still falls.", "A falling line.", draw, Table(("step", "loss"), rows)
    )


def _nothing() -> Figure:
    return Figure(
        "empty-figure",
        "Gradient noise scale",
        "No records: the probe was off.",
        "An empty figure.",
        lambda canvas: None,
        Table(("step", "noise scale"), ()),
        (4.5, 1.6),
    )


def sick() -> Document:
    findings = (
        Finding(
            "units/dormant",
            "ok",
            "3 of 1 024 units are dormant at τ = 0.025 (0.3 %).",
            Estimate(3.0, 0.0, "exact", "count over 2 048 examples"),
            "5 % of units",
            "Units that stay silent waste capacity; a few are normal with ReLU.",
            (),
            ("dormant-map",),
            "Mean |activation| per unit, normalised by layer, one forward over 2 048 examples.",
            "Sokar et al. 2023, arXiv:2302.12902",
        ),
        Finding(
            "sharpness/regime",
            "fail",
            "Sharpness is 2.31 ± 0.02 times the stability threshold of AdamW.",
            Estimate(2.314, 0.021, "residual", "Lanczos, 12 products, route linearize, 4 batches of 256"),
            "1, the edge of stability: λ₁ ≤ (1+β₁)(2−ηλ)/((1−β₁)η)",
            "Above the edge each step overshoots along the sharpest direction and the loss can only fall by "
            "oscillating. The run is not diverging yet, because the oscillation feeds back on the sharpness, "
            "but its progress is decided by that balance and no longer by the gradient → less is learned per step.",
            (
                "Halve the learning rate (η = 3e-4 → 1.5e-4) or lengthen the warm-up to 2 000 steps.",
                "Clip the gradient norm at 1.0; the 99th percentile is 4.7 now.",
                "Raise β₂ to 0.99, if the second moment lags behind √v in the first thousand steps.",
            ),
            ("sharpness-ratio", "effective-rates"),
            "Largest algebraic eigenvalue of the preconditioned Hessian, residual below 1 %, quiet fp32.",
            "Cohen et al. 2022, Adaptive gradient methods at the edge of stability, arXiv:2207.14484",
        ),
        Finding(
            "noise/scale",
            "unmeasured",
            "The gradient noise scale is undetermined: its interval includes zero.",
            Estimate(float("nan"), float("nan"), "standard error", "jackknife over 8 batches"),
            "",
            "With 8 batches the squared gradient cannot be told from its noise.",
            ("Give the probe 64 batches.",),
            (),
            "Ratio of unbiased estimates, numerator and denominator averaged apart.",
            "McCandlish et al. 2018, arXiv:1812.06162",
        ),
        Finding(
            "rates/spread",
            "warn",
            f"Effective learning rates differ 1 100-fold between layers; the slowest is {HOSTILE}.",
            Estimate(1100.0, 40.0, "spread", "ratio of medians over 50 steps"),
            "100-fold",
            "Layers with a small effective rate hardly move.",
            ("Turn off weight decay on the scale-invariant layers.", f"Give {LONG} its own parameter group."),
            ("effective-rates", "not-a-figure"),
            "η‖u‖/‖w‖ per tensor.",
            "",
        ),
    )
    methods = (
        ("sharpness", "Lanczos, full reorthogonalisation", "4 × 256", 0, 12, "linearize", 0.0091),
        ("noise scale", "per-example gradients", "8 × 256", 0, 0, "vmap(grad)", None),
        ("dormant units", "one forward", "1 × 2 048", 0, 0, "forward", 0.0),
    )
    skipped = (
        ("tangent kernel", "the objective was built by from_loss, which cannot see outputs; use Objective(...)"),
        (f"weight spectrum of {LONG}", "smaller than 50 × 50: a power law cannot be told from noise"),
    )
    return Document(
        f"runs/vit-s-<script>alert(1)</script>-{'x' * 40}",
        "2026-02-03T04:05:06+00:00",
        "fail",
        "Training is past the edge of stability: halve the learning rate before the next run.",
        "ViT-S/16 <b>compiled</b> · AdamW · step 5 000",
        findings,
        (_loss(), _ratio(), _rates(), _dormant(), _nothing()),
        (
            ("Model", "ViT-S/16, 22.1 M parameters, <b>compiled</b>"),
            ("Optimizer", "AdamW, η = 3e-4, β = (0.9, 0.95), weight decay 0.1"),
            ("Steps", "5 000 of 50 000"),
            ("Device", "NVIDIA H100, bfloat16 autocast"),
            ("Spent on probes", "41 s of 14 min (4.9 %)"),
            ("Checkpoint", LONG),
        ),
        Table(("measure", "estimator", "batches", "seed", "products", "route", "residual"), methods),
        Table(("what", "why"), skipped),
        Records(gzip.compress(CSV.encode(), mtime=0), 2, 9, "runs/a <b>"),
        (
            Sheet(
                "pairs/<i>",
                "Two & more",
                "Read <b>this</b>.",
                Table(("what", HOSTILE), (("loss", 0.5), (LONG, None))),
                "",
            ),
            Sheet("none", "Nothing here", "", Table(("what",), ()), "There is <none>."),
        ),
    )


def empty() -> Document:
    return Document(
        "an-empty-run",
        "2026-02-03T04:05:06+00:00",
        "unmeasured",
        "Nothing was measured.",
        "",
        (),
        (),
        (),
        Table(("measure", "estimator"), ()),
        Table(("what", "why"), ()),
    )
