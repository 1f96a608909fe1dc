from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.client import fresh_client, logged_in_server
from tests.wandb_server import WandbServer


@pytest.fixture(autouse=True)
def _client(tmp_path: Path) -> Iterator[None]:
    with fresh_client(tmp_path / "client"):
        yield


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """The server that the client logs to."""
    with logged_in_server() as server:
        yield server
