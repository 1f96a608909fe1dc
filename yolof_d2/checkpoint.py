"""Loading weights, with an error instead of a silent start from scratch."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from .errors import ConfigError


class StrictDetectionCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which refuses a file that has nothing for the model.

    Detectron2 warns about each weight without a counterpart and goes on, so that a file under other
    names (of another project, or of a backbone without its prefix) trains from scratch.
    """

    def _load_model(self, checkpoint: Any) -> Any:
        in_file = [name for name in checkpoint["model"] if "." in name]
        incompatible = super()._load_model(checkpoint)
        in_model = [name for name, _ in self.model.named_parameters()]
        if incompatible is not None and set(in_model) <= set(incompatible.missing_keys):
            raise ConfigError(
                f"MODEL.WEIGHTS: none of its {len(in_file)} weights ({', '.join(in_file[:2])}, "
                f"...) has a place in the model ({', '.join(in_model[:2])}, ...). Weights of other "
                "projects: python -m yolof_d2.convert --help"
            )
        return incompatible
