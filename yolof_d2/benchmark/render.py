"""Show the record of a benchmark as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tabulate import tabulate

from .parts import PARTS

_COLORS = {
    "backbone": "#4c6a9c",
    "encoder": "#58a4b0",
    "decoder": "#a8c686",
    "matching and loss": "#e4b363",
    "post-processing": "#e4b363",
    "backward": "#c8553d",
    "optimizer": "#8a6d8f",
    "other": "#b8b8b8",
}


def render(record: dict[str, Any]) -> str:
    """Return Markdown: a table per mode, one of sizes, and the ratios to the first model."""
    settings, models = record["settings"], record["models"]
    kind = _memory_kind(record)
    before = models[0]["peak_memory_mib"]["before"]["process"]
    explained = {
        "allocated": "allocated by tensors on the GPU",
        "process": f"resident memory of a process, {before:.0f} MiB of it Python and PyTorch",
    }
    sections = [
        "# Benchmark",
        f"{describe_machine(record)}. Commit {record['commit']}, {record['started']}.",
        f"Images of {_size(settings['size'])} pixels, padded as each model wants. Random weights. "
        f"{settings['objects']} objects in a training image. {settings['boxes']} candidates of a "
        f"test image pass the score threshold. Medians of {settings['iterations']} rounds after "
        f"{settings['warmup']} to warm up, the models in turn. Times in ms; parts from steps of "
        f"their own, with marks. Memory is the peak, {explained[kind]}.",
    ]
    for mode in PARTS:
        sections += [f"## {_title(mode, models)}", _table([_row(m, mode, kind) for m in models])]
    sections += [
        "## Size",
        "Parameters in millions, those of frozen layers in brackets; GMAC are 10^9 multiply-adds "
        "of convolutions, linear layers and attention for one image.",
        _table([_size_row(model) for model in models]),
    ]
    if len(models) > 1:
        sections += ["## Ratios", "\n".join(describe_ratio(record, m) for m in models[1:])]
    return "\n\n".join(sections) + "\n"


def describe_machine(record: dict[str, Any]) -> str:
    """Return device, threads or arithmetic, and PyTorch's version, in one line."""
    settings, hardware = record["settings"], record["hardware"]
    if settings["device"] == "cuda":
        tf32 = [name.replace("_", " ") for name, used in settings["tf32"].items() if used]
        device = (
            f"{hardware['gpus'][0]}, TF32 in {' and '.join(tf32) or 'nothing'}, cuDNN benchmark "
            f"{'on' if settings['cudnn_benchmark'] else 'off'}"
        )
    else:
        device = f"{hardware['cpu']}, {settings['threads']} threads"
    return f"{device}, PyTorch {record['versions']['torch']}"


def describe_ratio(record: dict[str, Any], model: dict[str, Any]) -> str:
    """Return one line: the costs of a model relative to the first one."""
    first = record["models"][0]
    parts = []
    for mode in PARTS:
        ratio = model[mode]["ratio_to_first"]
        parts.append(
            f"{'training step' if mode == 'training' else mode} 1 : {ratio['median']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}, {ratio['confidence']:.0%} confidence)"
        )
    kind = _memory_kind(record)
    memory = [each["peak_memory_mib"]["training"][kind] for each in (first, model)]
    work = [sum(each["multiply_adds"].values()) for each in (first, model)]
    parts.append(f"training memory 1 : {memory[1] / memory[0]:.2f}")
    parts.append(f"multiply-adds 1 : {work[1] / work[0]:.2f}")
    return f"{first['name']} : {model['name']} = " + ", ".join(parts)


def draw(record: dict[str, Any], files: Sequence[Path]) -> None:
    """Draw the time of each part, a bar for each model, training beside inference."""
    models = record["models"]
    settings: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "benchmark"}
    settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(12, 2.2 + 0.6 * len(models)), layout="constrained")
        bars: dict[str, Any] = {}
        for axes, (mode, parts) in zip(figure.subplots(1, 2), PARTS.items(), strict=True):
            for place, model in enumerate(models):
                left = 0.0
                for part in parts:
                    width = 1000 * model[mode]["median_seconds_of_parts"][part]
                    axes.barh(place, width, 0.6, left=left, color=_COLORS[part],
                              label=part if place == 0 else None)  # fmt: skip
                    left += width
                ratio = model[mode]["ratio_to_first"]["median"]
                whole = 1000 * model[mode]["median_seconds"]
                axes.text(left, place, f" {whole:.4g} ms ({ratio:.2f})", va="center", fontsize=8)
            names = [model["name"].replace("_FPN", "\n_FPN") for model in models]
            axes.set_yticks(range(len(models)), names if mode == "training" else [])
            axes.invert_yaxis()
            axes.margins(x=0.25)
            axes.set_xlabel("ms (times the first)")
            axes.set_title(_title(mode, models), fontsize=10)
            bars.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(bars.values(), bars, loc="outside lower center", ncols=len(bars),
                      frameon=False, fontsize=8)  # fmt: skip
        size = _size(record["settings"]["size"])
        figure.suptitle(f"{describe_machine(record)}, {size} pixels", fontsize=9)
        for file in files:
            figure.savefig(file, dpi=120)


def _row(model: dict[str, Any], mode: str, kind: str) -> dict[str, str]:
    figures = model[mode]
    ratio = figures["ratio_to_first"]
    parts = figures["median_seconds_of_parts"]
    row = {
        "model": model["name"],
        "precision": model["precision"],
        "ms": _ms(figures["median_seconds"]),
        "p95": _ms(figures["p95_seconds"]),
        "images/s": f"{figures['images_per_second']:.3g}",
        "to the first": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        "MiB": f"{model['peak_memory_mib'][mode][kind]:.0f}",
        **{part: _ms(seconds) for part, seconds in parts.items()},
    }
    if mode == "inference":
        passed, kept = (model["candidates"][name][0] for name in ("passed", "kept"))
        row["boxes"] = f"{passed} to {kept}"
    return row


def _size_row(model: dict[str, Any]) -> dict[str, str]:
    row = {"model": model["name"], "padded to": _size(model["padded_size"])}
    parameters = {part: (n["trainable"], n["frozen"]) for part, n in model["parameters"].items()}
    for part in ("backbone", "encoder", "decoder"):
        trainable, frozen = parameters[part]
        row[f"{part} M"] = f"{trainable / 1e6:.2f}" + (f" ({frozen / 1e6:.2f})" if frozen else "")
    row["all M"] = f"{sum(map(sum, parameters.values())) / 1e6:.2f}"
    for part in ("backbone", "encoder", "decoder"):
        row[f"{part} GMAC"] = f"{model['multiply_adds'][part] / 1e9:.1f}"
    row["all GMAC"] = f"{sum(model['multiply_adds'].values()) / 1e9:.1f}"
    return row


def _table(rows: Sequence[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _title(mode: str, models: Sequence[dict[str, Any]]) -> str:
    name = "Training step" if mode == "training" else "Inference"
    return f"{name}, batch size {models[0][mode]['batch_size']}"


def _memory_kind(record: dict[str, Any]) -> str:
    return "allocated" if record["settings"]["device"] == "cuda" else "process"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.3g}"
