"""What every test starts from: one core, and a fixed random state."""

from __future__ import annotations

import os
import random

import numpy
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Two processes with two threads each on two cores wait for one another: those that tests start have one as well.
os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
