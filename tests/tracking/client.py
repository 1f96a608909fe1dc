"""Fixtures with W&B's client: it has no key and no settings but theirs, and is gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wandb_server import API_KEY, WandbServer
from yolof_d2.tracking.wandb_run import forget_wandb


@pytest.fixture
def wandb_client(tmp_path: Path) -> Iterator[None]:
    """Start W&B's client anew."""
    folder = tmp_path / "client"
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("WANDB_"):
                patch.delenv(name)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("WANDB_DATA_DIR", str(folder / "data"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # second, the least
        patch.setenv("WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS", "1")
        yield
        _end_client()


def _end_client() -> None:
    import wandb
    from wandb.sdk.lib import wbauth

    forget_wandb()
    wbauth.unauthenticate_session(update_settings=False)  # what a client that was killed leaves
    wandb.api = type(wandb.api)()  # the same
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def server(wandb_client: None) -> Iterator[WandbServer]:
    """The server that the client has a key of."""
    with WandbServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", API_KEY)
        yield server
