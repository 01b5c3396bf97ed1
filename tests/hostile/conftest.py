"""One fork server and one workdir for all hostile cases of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import harness
import input_cases
import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Server]:
    started = harness.Server(tmp_path_factory.mktemp("compiled"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def made(server: harness.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with every kind of file; cases copy it."""
    return harness.make_workdir(server, tmp_path_factory.mktemp("made") / "workdir")


@pytest.fixture
def box(made: Path, tmp_path: Path) -> Iterator[harness.Box]:
    made_box = harness.Box(tmp_path / "box", made)
    input_cases.photos(made_box)
    (made_box.cwd / "test.npz").write_bytes(input_cases.GOOD)
    labels = input_cases.saved(input_cases.LABELS)
    (made_box.cwd / "train_labels.npy").write_bytes(labels)
    yield made_box
    made_box.remove()
