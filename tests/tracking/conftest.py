from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wandb_server import API_KEY, WandbServer


@pytest.fixture(autouse=True)
def _client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client that knows of no key and of no settings, and is gone after the test."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # second, the least
    monkeypatch.setenv("WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS", "1")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    yield
    import wandb

    wandb.teardown()
    wandb.api = type(wandb.api)()  # it would ask the process that is gone


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server that the client logs to."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        yield server
