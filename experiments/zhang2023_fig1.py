"""Softmax decoders under covariate shift, beside the exact error of the linear layer (arXiv 2306.09927, Figure 1).

python experiments/zhang2023_fig1.py                                        d = 3, about five minutes on two cores
python experiments/zhang2023_fig1.py decoder=published seed=1               the paper's size, for a GPU
python experiments/zhang2023_fig1.py decoder.steps=300 decoder.prompts=500  a look at the pipeline
"""

from __future__ import annotations

import json
from pathlib import Path

import hydra
import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from icl_lab import theory
from icl_lab.report.style import house_style, save
from icl_lab.training import covariate_shift
from icl_lab.training.covariate_shift import Training
from icl_lab.training.prefixes import Curriculum


def title(tested: str, scale: float) -> str:
    """A test distribution in words."""
    return "identity" if tested == "fixed" else f"random, c = {scale:g}"


def measure(config: DictConfig) -> list[dict]:
    """One entry for each pair of training distribution and test distribution: curves of the decoder and of the linear layer."""
    size = config.decoder
    training = Training(
        **{name: size[name] for name in ("width", "layers", "heads", "steps", "batch", "learning_rate")},
        curriculum=Curriculum(**size.curriculum),
    )
    curves = []
    for trained in config.trained:
        decoder = covariate_shift.train_under(
            trained, size.dim, size.context_length, size.longest, training, config.seed, progress=True
        )
        for tested, scale in [("fixed", 1.0), *(("random", float(scale)) for scale in config.scales)]:
            mean, error = covariate_shift.shifted_risk(decoder, tested, scale, size.longest, config.seed, size.prompts)
            lengths = range(1, size.longest + 1)
            linear = [
                theory.covariate_shift.risk_per_coordinate(trained, tested, scale, size.dim, size.context_length, length)
                for length in lengths
            ]
            curves.append(
                {
                    "trained": trained,
                    "tested": tested,
                    "scale": scale,
                    "lengths": list(lengths),
                    "decoder": mean[1:].tolist(),
                    "standard_error": error[1:].tolist(),
                    "linear_layer": linear,
                }
            )
    return curves


def show(curves: list[dict], length: int, console: Console) -> None:
    """The errors at the trained length as a table."""
    table = Table(title=f"Error per coordinate after N = {length} examples (least squares: 0)", title_justify="left")
    for name in ("trained on", "tested on", "softmax decoder", "linear layer, exact", "zero predictor"):
        table.add_column(name, justify="right")
    for curve in curves:
        at = curve["lengths"].index(length)
        table.add_row(
            curve["trained"],
            title(curve["tested"], curve["scale"]),
            f"{curve['decoder'][at]:.3g} ± {curve['standard_error'][at]:.1g}",
            f"{curve['linear_layer'][at]:.3g}",
            f"{curve['scale']:g}",
        )
    console.print(table)


def draw(curves: list[dict], length: int, path: Path) -> None:
    """Error against context length, one panel a test distribution."""
    tests = list(dict.fromkeys((curve["tested"], curve["scale"]) for curve in curves))
    with house_style():
        figure = Figure(figsize=(3.1 * len(tests), 3.4), layout="constrained")
        row = np.atleast_1d(figure.subplots(1, len(tests)))
        numbers: dict[str, list[float]] = {"length": curves[0]["lengths"]}
        for axes, (tested, scale) in zip(row, tests, strict=True):
            for colour, curve in enumerate(c for c in curves if (c["tested"], c["scale"]) == (tested, scale)):
                mean, error = np.asarray(curve["decoder"]), np.asarray(curve["standard_error"])
                label, lengths = f"trained on {curve['trained']}", curve["lengths"]
                axes.plot(lengths, curve["linear_layer"], color=f"C{colour}", label=f"linear layer, {label}")
                axes.errorbar(lengths, mean, 2 * error, fmt=".", color=f"C{colour}", label=f"decoder, {label}")
                column = f"{curve['trained']} to {title(tested, scale)}"
                numbers |= {f"decoder {column}": mean, f"error {column}": error, f"linear {column}": curve["linear_layer"]}
            axes.axhline(scale, color="0.5", linestyle=":", label="zero predictor")
            axes.axvline(length, color="0.8", linewidth=1)
            axes.set(title=f"tested on {title(tested, scale)}", xlabel="examples M", yscale="log")
        row[0].set_ylabel("error per coordinate")
        row[0].legend(fontsize="x-small")
        save(
            figure,
            path,
            "Points: softmax decoders with intervals of two standard errors; lines: the exact error of the linear layer's "
            "limit. Under shift the decoders stay far below the linear layer, but not at zero, where least squares is from d "
            "examples on; right of the grey line are lengths that no decoder was trained on.",
            numbers,
        )


@hydra.main(version_base="1.3", config_path="../configs", config_name="covariate_shift")
def main(config: DictConfig) -> None:
    """Train, test, and leave curves.json, a figure with its numbers, and the configuration in the output folder."""
    folder, length = Path(config.output), config.decoder.context_length
    folder.mkdir(parents=True, exist_ok=True)
    curves = measure(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    (folder / "curves.json").write_text(json.dumps(curves, indent=2), encoding="utf-8")
    draw(curves, length, folder / "covariate_shift.png")
    console = Console()
    show(curves, length, console)
    console.print(f"Curves and figure: {folder}", highlight=False)


if __name__ == "__main__":
    main()
