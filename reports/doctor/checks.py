"""What a machine is asked: libraries, devices, routes to products, attention, files."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from reports.doctor.check import AbsentError, Check, tried

LIBRARIES = {
    "torch": "everything that is measured",
    "numpy": "everything that is measured",
    "scipy": "spectra, and statistics of noise",
    "numba": "power-law fits",
    "safetensors": "arrays of runs, and checkpoints of that kind",
    "matplotlib": "figures",
    "jinja2": "the HTML report",
    "rich": "reports in the terminal",
}
EXTRAS = {
    "transformers": "models of Hugging Face",
    "lightning": "models of Lightning",
    "pandas": "tables as data frames: to_pandas()",
}
PRODUCTS = "Hessian-vector products"
_CLOSE = 1e-2


def checks() -> Iterator[Check]:
    """One after the other, cheapest first; what cannot be tried without torch is left out where it is broken."""
    yield Check("libraries", "python", "ok", platform.python_version(), "everything")
    for name, use in LIBRARIES.items():
        yield tried("libraries", name, use, partial(_version, name))
    for name, use in EXTRAS.items():
        yield tried("optional", name, use, partial(_installed, name), needed=False)
    yield tried("optional", "compiler", "the compiled route, which is taken on request only", _compiler, needed=False)
    try:
        import torch
    except ImportError:
        return
    yield Check("devices", "cpu", "ok", f"{torch.get_num_threads()} threads", "everything")
    for device, use in _accelerators():
        yield tried("devices", device, use, partial(_adds_up, device), needed=False)
    for route, use in _routes().items():
        yield tried(PRODUCTS, route, use, partial(_product, route), needed=route in _NEEDED)
    for name, use in _ATTENTION.items():
        yield tried("attention", name, use, partial(_attention, name), needed=name == "math")
    yield tried("measures", "power-law fit", "tails of weight spectra", _power_law)
    yield tried("reports", "fonts", "figures and the PDF", _fonts)
    yield tried("reports", "pdf", "the report on paper", _pdf)
    yield tried(
        "reports", "terminal", "± and ✗ in the terminal; other signs stand in their place", _terminal, needed=False
    )


def _version(name: str) -> str:
    importlib.import_module(name)
    return metadata.version(name)


def _installed(name: str) -> str:
    # Importing a framework takes seconds, and says no more.
    if importlib.util.find_spec(name) is None:
        raise AbsentError("not installed")
    return metadata.version(name)


def _compiler() -> str:
    found = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
    if found is None:
        raise AbsentError("no C++ compiler on the path")
    return found


def _accelerators() -> list[tuple[str, str]]:
    import torch

    if torch.cuda.is_available():
        return [(f"cuda:{index}", "models on this GPU") for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [("mps", "models on this GPU")]
    return [("cuda", "models on a GPU")]


def _adds_up(device: str) -> str:
    import torch

    if device == "cuda":
        raise AbsentError("none seen")
    total = float(torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum())
    if total != 512.0:
        raise RuntimeError(f"a matrix product came out as {total:g} instead of 512")
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "works"


_NEEDED = ("double backward", "central differences")


def _routes() -> dict[str, str]:
    return {
        "double backward": "curvature of every model",
        "central differences": "models whose operations have no second derivative",
        "batched": "several vectors in one pass, on request",
        "linearize": "convolutional networks, after many products",
    }


def _product(route: str) -> str:
    """A product, held against what the loss gives on both sides."""
    import torch
    from torch import nn

    from diagnostics import Hessian, Objective

    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, inputs[:, :3].argmax(1)))
    vectors = torch.randn(objective.num_parameters, 2, generator=generator, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hessian = Hessian(objective, route=route)
        product = hessian @ vectors
        known = Hessian(objective, route="central differences") @ vectors
    off = float((product - known).norm() / known.norm())
    if route not in hessian.route:
        raise RuntimeError(hessian.route)
    if not off < _CLOSE:
        raise RuntimeError(f"off by {off:.1e} from differences of gradients")
    return f"agrees with differences of gradients to {off:.0e}" if route != "central differences" else "works"


_ATTENTION = {
    "math": "second derivatives of attention: it is what measures run with",
    "flash": "training; measures do without",
    "efficient": "training; measures do without",
}


def _attention(name: str) -> str:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.randn(1, 1, 4, 8, device=device, requires_grad=name == "math")
    with warnings.catch_warnings(), sdpa_kernel(backend):
        warnings.simplefilter("ignore")
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    if name != "math":
        return f"runs on {device}"
    (first,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    torch.autograd.grad(first.square().sum(), query)
    return f"runs on {device}, with second derivatives"


def _power_law() -> str:
    from diagnostics import power_law

    fit = power_law([1.0 / (1.0 - place / 200) for place in range(200)])
    return f"an exponent of {float(fit.exponent):.2f}, where 2 is true"


def _fonts() -> str:
    from matplotlib import font_manager

    from reports.render.canvas import FONT

    return Path(font_manager.findfont(FONT, fallback_to_default=False)).name


def _pdf() -> str:
    from reports.document import Document, Table
    from reports.render.pdf import to_pdf

    nothing = Table((), ())
    page = Document("doctor", "2000-01-01T00:00:00", "ok", "± ✗ λ", "", (), (), (), nothing, nothing)
    with tempfile.TemporaryDirectory() as folder:
        to_pdf(page, Path(folder) / "page.pdf")
        size = (Path(folder) / "page.pdf").stat().st_size
    return f"a page of {size:,} bytes was written"


def _terminal() -> str:
    encoding = sys.stdout.encoding or "ascii"
    "±✗✓λ→".encode(encoding)
    return encoding
