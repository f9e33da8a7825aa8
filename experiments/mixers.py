"""Token mixers as learners of a prompt: what each one computes, what risk it reaches, what it remembers, what it costs.

python experiments/mixers.py                              all figures, about three minutes on two cores
python experiments/mixers.py 'figures=[ladder,map]'       some of them
python experiments/mixers.py 'figures=[map]' 'map.mechanisms=[linear,deltanet]' map.prompts=256       a minute

ladder     risks on a task that drifts, from linear attention to the Kalman filter, beside closed forms
lengths    risks against the number of examples, beside closed forms
recall     what is left of a stored value, against the number of pairs
speed      seconds of one token after the other, of blocks of tokens, and of all tokens at once
map        which algorithm a mechanism runs: distances of its answers from the families of `analysis.identify`
"""

from __future__ import annotations

import common
import hydra
from mixer_figures.ladder import ladder
from mixer_figures.lengths import lengths
from mixer_figures.map import map_of_algorithms
from mixer_figures.recall import recall
from mixer_figures.speed import speed
from omegaconf import DictConfig

from icl_lab.core.errors import InvalidValueError

FIGURES = {"ladder": ladder, "lengths": lengths, "recall": recall, "speed": speed, "map": map_of_algorithms}


@hydra.main(version_base="1.3", config_path="../configs", config_name="mixers")
def main(config: DictConfig) -> None:
    """Draw the figures that are asked for, with their numbers beside them."""
    if unknown := set(config.figures) - FIGURES.keys():
        raise InvalidValueError(f"`figures` may be {', '.join(FIGURES)}; got {', '.join(sorted(unknown))}.")
    with common.configured_figures(config) as folder:
        for name in config.figures:
            FIGURES[name](config, folder)


if __name__ == "__main__":
    main()
