"""Damaged checkpoints and run folders, one for each seed: cut, flipped, overwritten, of wrong types, or hostile.

Whole files and a whole run are made once; each case takes one of them and breaks it in one way of some dozens. Pickles
that would run code leave a mark behind if they do.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diagnostics import Objective
from probes import EffectiveLearningRate, FeatureRank, Monitor, NoiseScale, Sharpness, Spectrum, Units

MARK = "code-of-a-file-was-run"


class Payload:
    """A pickle that would run code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


class Damage:
    """Makes cases in a folder.

    Args:
        folder: where; the whole files are made there at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / MARK
        self._whole = folder / "whole"
        self._whole.mkdir()
        _checkpoints(self._whole)
        _run(self._whole / "run")

    def case(self, seed: int) -> tuple[Path, str]:
        """The damaged file or folder of this seed, in place of the last one, and what was done to it."""
        place = self.folder / "case"
        _remove(place)
        place.mkdir()
        chance = random.Random(seed)
        kinds: list[Callable[[random.Random, Path], tuple[Path, str]]] = [
            *(self._bytes, self._bytes, self._contents, self._contents, self._hostile, self._strange),
            *(self._header, self._records, self._records, self._arrays, self._run_bytes),
        ]
        return chance.choice(kinds)(chance, place)

    def _bytes(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        source = chance.choice(sorted(self._whole.glob("*.*")))
        path = place / (
            source.name if chance.random() < 0.8 else chance.choice(("a.pt", "b.safetensors", "c", "d.bin"))
        )
        data, how = _broken(chance, source.read_bytes())
        path.write_bytes(data)
        return path, f"{source.name}: {how}"

    def _contents(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        contents, how = _changed(chance, _contents(), _strange_values(chance))
        path = place / "contents.pt"
        torch.save(contents, path, _use_new_zipfile_serialization=chance.random() < 0.7)
        return path, f"wrong types: {how}"

    def _hostile(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        path = place / chance.choice(("hostile.pt", "hostile.bin", "hostile.safetensors"))
        contents, how = _changed(chance, _contents(), (Payload(self.mark),))
        writer = chance.randrange(3)
        if writer < 2:
            torch.save(contents, path, _use_new_zipfile_serialization=writer == 0)
        else:
            path.write_bytes(pickle.dumps(contents, protocol=chance.randrange(6)))
        if chance.random() < 0.3:
            data, more = _broken(chance, path.read_bytes())
            path.write_bytes(data)
            how += f", {more}"
        return path, f"hostile: {how}"

    def _strange(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        kind = chance.choice(
            ("empty", "random", "folder", "loop", "dangling", "link", "locked", "pipe", "text", "name")
        )
        path = place / ("strange.pt" if kind != "name" else "<img src=x onerror=alert(1)>\x1b[31m'\".pt")
        whole = self._whole / "zip.pt"
        if kind == "random":
            path.write_bytes(chance.randbytes(chance.randrange(1, 5000)))
        elif kind == "folder":
            path.mkdir()
            if chance.random() < 0.5:
                shutil.copy(whole, path / "model.pt")
        elif kind in ("loop", "dangling", "link"):
            path.symlink_to({"loop": path, "dangling": place / "gone", "link": whole}[kind])
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "text":
            path.write_text(chance.choice(("{}", "[]", "import os\n", "(lp0\n.", "cos\nsystem\n(S'true'\ntR.")) * 3)
        elif kind == "name":
            shutil.copy(whole, path)
        else:
            path.write_bytes(b"" if kind == "empty" else whole.read_bytes())
            path.chmod(0o000 if kind == "locked" else 0o644)
        return path, f"strange: {kind}"

    def _copy(self, place: Path) -> Path:
        shutil.copytree(self._whole / "run", place / "run")
        return place / "run"

    def _header(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        run = self._copy(place)
        header, how = _changed(chance, json.loads((run / "run.json").read_text()), _weird())
        (run / "run.json").write_text(json.dumps(header), errors="surrogatepass")
        return run, f"header: {how}"

    def _records(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        run = self._copy(place)
        lines = (run / "records.jsonl").read_text().splitlines()
        hows = []
        for _ in range(chance.choice((1, 1, 3, 30))):
            record = json.loads(lines[index := chance.randrange(len(lines))])
            key = chance.choice(list(record))
            record[key] = chance.choice(_weird())
            hows.append(f"{index}.{key} = {record[key]!r:.40}")
            if chance.random() < 0.1:
                del record[key]
            lines[index] = json.dumps(record)
        if chance.random() < 0.1:
            chance.shuffle(lines)
        (run / "records.jsonl").write_text("\n".join(lines) + "\n", errors="surrogatepass")
        return run, f"records: {', '.join(hows[:3])}"

    def _arrays(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        run = self._copy(place)
        for path in chance.sample(sorted((run / "arrays").iterdir()), 2):
            if chance.random() < 0.3:
                tensors = {
                    "density": torch.rand(chance.choice(((), (0,), (3,), (2, 2), (3, 0, 4)))),
                    "x": torch.ones(1),
                }
                save_file(tensors, path)
            else:
                path.write_bytes(_broken(chance, path.read_bytes())[0])
        return run, "arrays"

    def _run_bytes(self, chance: random.Random, place: Path) -> tuple[Path, str]:
        run = self._copy(place)
        path = run / chance.choice(("run.json", "records.jsonl"))
        kind = chance.choice(("bytes", "bytes", "bytes", "gone", "folder", "loop", "deep"))
        if kind == "bytes":
            data, kind = _broken(chance, path.read_bytes())
            path.write_bytes(data)
        elif kind == "deep":
            path.write_text("[" * 100_000 + "\n")
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()
            elif kind == "loop":
                path.symlink_to(path)
        return run, f"{path.name}: {kind}"


def _broken(chance: random.Random, data: bytes) -> tuple[bytes, str]:
    """Bytes damaged in one way."""
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice((1, 8, 64, 1000)))
    kind = chance.choice(
        ("cut", "flipped", "changed", "overwritten", "zeros", "removed", "inserted", "appended", "moved")
    )
    if kind in ("flipped", "changed"):
        # The first kilobyte of most formats is where every byte means something.
        reach = min(len(data), chance.choice((64, 1024, len(data))))
        content = bytearray(data)
        for _ in range(chance.choice((1, 1, 3, 50))):
            place = chance.randrange(reach)
            content[place] = content[place] ^ (1 << chance.randrange(8)) if kind == "flipped" else chance.randrange(256)
        return bytes(content), f"{kind} within {reach}"
    made = {
        "cut": lambda: data[:start],
        "overwritten": lambda: data[:start] + chance.randbytes(end - start) + data[end:],
        "zeros": lambda: data[:start] + bytes(end - start) + data[end:],
        "removed": lambda: data[:start] + data[end:],
        "inserted": lambda: data[:start] + chance.randbytes(chance.randrange(1, 100)) + data[start:],
        "appended": lambda: data + chance.randbytes(chance.randrange(1, 1000)),
        "moved": lambda: data[start:] + data[:start],
    }
    return made[kind](), f"{kind} at {start}"


def _changed(chance: random.Random, tree: Any, values: tuple[Any, ...]) -> tuple[Any, str]:
    """A tree of dicts and lists with one to three of its nodes replaced."""
    hows = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        node, path = tree, ""
        while isinstance(node, dict | list) and node:
            key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
            path += f".{key}"
            if not isinstance(node[key], dict | list) or chance.random() < 0.3:
                value = chance.choice(values)
                hows.append(f"{path} = {type(value).__name__}")
                if isinstance(node, dict) and chance.random() < 0.15:
                    del node[key]
                else:
                    node[key] = value
                break
            node = node[key]
    return tree, ", ".join(hows)


def _contents() -> dict[str, Any]:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "step": 3, "epoch": 1}
    return {**state, "loss": [1.0, 0.5], "args": {"lr": 0.1, "name": "run"}}


def _strange_values(chance: random.Random) -> tuple[Any, ...]:
    loop: dict[str, Any] = {}
    loop["itself"] = loop
    deep: list[Any] = []
    for _ in range(chance.choice((10, 300))):
        deep = [deep]
    tensors: tuple[Tensor, ...] = (
        *(torch.tensor(float("nan")), torch.full((4, 4), float("nan")), torch.full((3,), float("inf")), torch.empty(0)),
        *(torch.empty(3, 0), torch.tensor(True), torch.ones(2, 2, dtype=torch.complex64), torch.ones(3, 3).to_sparse()),
        *(
            torch.ones(4, 4, dtype=torch.int8),
            torch.ones(8, 8, dtype=torch.float8_e4m3fn),
            torch.ones(4, 4, dtype=torch.uint64),
        ),
        *(torch.tensor(2**62), torch.tensor(-5), torch.ones(1).expand(100, 100), torch.full((5, 5), 1e-300).double()),
        *(torch.ones(1, 1, 1, 1, 1), torch.zeros(6, 6), torch.full((4, 4), 3e38), torch.empty(2, device="meta")),
    )
    return (
        *_weird(),
        *tensors,
        *tensors,
        loop,
        deep,
        b"bytes",
        (1, 2),
        {1: torch.ones(2)},
        {"state": {}, "param_groups": 3},
    )


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    contents = _contents()
    torch.save(contents, folder / "zip.pt")
    torch.save(contents, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(contents["model"], folder / "weights.safetensors")
    (folder / "bare.pkl").write_bytes(pickle.dumps({"lr": 0.1, "names": ["a", "b"]}))


def _run(folder: Path) -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(32, 6)
    batch = (inputs, inputs[:, :3].argmax(1))
    objective = Objective(model, nn.CrossEntropyLoss(), batch, mode="train")
    probes = [Sharpness(), EffectiveLearningRate(), Units(), Spectrum(probes=2, steps=8), FeatureRank(), NoiseScale()]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=2, budget=None) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss.item())


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)


def _weird() -> tuple[Any, ...]:
    """Values that fit nowhere, made anew: a case may change those that can be changed."""
    return (
        *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 10**400, 0.5, -0.0, 1e308, -1e308),
        *(
            float("nan"),
            float("inf"),
            float("-inf"),
            "",
            "text",
            "7",
            "nan",
            "<script>alert(1)</script>",
            "\x1b[31m",
            "\x00",
        ),
        *("\ud800", "a" * 5000, "../../etc/passwd", [], [[]], [None], [1, "2"], {}, {"": ""}, {"a": {"b": [1]}}),
    )
