"""Send trainings that logged to Weights & Biases, or should have, to its server.

python -m yolof_d2.tracking OUTPUT_DIR [OUTPUT_DIR ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .push import push_folder
from .wandb_run import one_line


def main(argv: Sequence[str] | None = None) -> None:
    """Push each folder; exit with a message if one cannot be pushed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="+", type=Path, help="OUTPUT_DIR of a training")
    for folder in parser.parse_args(argv).folder:
        note = folder / "wandb.json"
        if not note.is_file():
            sys.exit(f"error: there is no {note}. Expected the OUTPUT_DIR of a training with "
                     "WANDB.ENABLED True")  # fmt: skip
        try:
            done = push_folder(folder, json.loads(note.read_text()), send_model=False)
        except Exception as error:  # noqa: BLE001  W&B raises of all kinds
            sys.exit(f"error: W&B: {one_line(error)}")
        sys.stdout.write(f"{folder}: {done}\n")


if __name__ == "__main__":
    main()
