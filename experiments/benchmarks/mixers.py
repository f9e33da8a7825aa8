"""Time and memory of token mixers against the number of tokens, and blocks of tokens against one token after the other.

    python experiments/benchmarks/mixers.py [--quick] [-o mixers.json]

One head, keys and values of width 32, float32, gates drawn at random. Blocks of 64 tokens should cost time linear in the tokens
and no more memory than the tokens and outputs themselves; a masked matrix of all tokens costs their square. Sizes and forms
have their turns in every round, so that all of them see the same load.
"""

from __future__ import annotations

from typing import Any

import common
from matplotlib.figure import Figure
from one_head import WIDTH, program

CHUNKED = ("linear", "retention", "gla", "deltanet", "gated_deltanet", "kda", "mesa")
SQUARE = {"softmax, parallel": ("softmax", "parallel"), "retention, parallel": ("retention", "parallel")}


def growth(quick: bool) -> dict[str, Any]:
    """Seconds of a whole sequence, and the powers of its length that they grow with."""
    lengths = (512, 4096) if quick else (512, 2048, 8192, 32768, 65536)
    small = lengths[:2] if quick else (512, 1024, 2048, 4096)
    cases = [(name, name, "chunk", length) for name in CHUNKED for length in lengths]
    cases += [(label, name, form, length) for label, (name, form) in SQUARE.items() for length in small]
    seconds = common.medians_in_turns([program(*case[1:]) for case in cases], 3 if quick else 5)
    rows: dict[str, common.Rows] = {}
    for (label, *_, length), second in zip(cases, seconds, strict=True):
        rows.setdefault(label, []).append({"T": length, "seconds": second})
    return {
        **{f"exponent_{label.replace(', ', '_')}": common.exponent(found, "T", "seconds") for label, found in rows.items()},
        "rows": [{"mixer": label, **row} for label, found in rows.items() for row in found],
    }


def blocks(quick: bool) -> dict[str, Any]:
    """How many times as fast blocks of tokens are as one token after the other: outputs alone, and gradients.

    Forward, the loop is compiled to vector code whose state stays in the cache, and blocks take more operations a token,
    about 6 K^2 + 12 C K + C^2 against 6 K^2; for gradients the loop keeps a state of every token, and blocks one of each group.
    """
    length, widths = (1024, (32,)) if quick else (4096, (32, 64, 128))
    names = ("deltanet", "gated_deltanet", "kda", "gla")
    cases = [(name, width, gradients) for name in names for width in widths for gradients in (False, True)]
    rows = []
    for name, width, gradients in cases:
        programs = [program(name, form, length, width, gradients=gradients) for form in ("recurrent", "chunk")]
        loop, block = common.medians_in_turns(programs, 3 if quick else 7)
        what = "gradients" if gradients else "outputs"
        rows.append({"mixer": name, "width": width, "of": what, "loop": loop, "blocks": block, "ratio": loop / block})
    ratios = {f"ratio_{row['mixer']}_{row['of']}": row["ratio"] for row in rows if row["width"] == WIDTH}
    return {"T": length, **ratios, "rows": rows}


def peak(name: str, length: int) -> float:
    """Peak memory of a process that computes nothing else, in megabytes."""
    program(name, "chunk", length)()
    return common.peak_megabytes()


def memory(quick: bool) -> dict[str, Any]:
    """Megabytes beside those of the arrays that come in and go out, at the shortest and the longest sequence."""
    lengths = (512, 16384) if quick else (512, 65536)
    rows = []
    for name in ("retention", "kda"):
        short, long = (common.in_fresh_process(peak, name, length) for length in lengths)
        # Queries, keys, values, outputs, and decays per channel, each once in numpy and once in JAX.
        arrays = 2 * 5 * (lengths[1] - lengths[0]) * WIDTH * 4 / 2**20
        rows.append(
            {"mixer": name, "short_mb": short, "long_mb": long, "arrays_mb": arrays, "beside_mb": long - short - arrays}
        )
    return {"largest_beside_mb": max(row["beside_mb"] for row in rows), "rows": rows}


def draw(figure: Figure, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    axes, rows = figure.subplots(), results["growth"]["rows"]
    numbers: dict[str, Any] = {}
    for label in dict.fromkeys(row["mixer"] for row in rows):
        lengths, seconds = zip(*((row["T"], row["seconds"]) for row in rows if row["mixer"] == label), strict=True)
        axes.plot(lengths, seconds, "o--" if label in SQUARE else "o-", label=label)
        numbers |= {f"{label} T": lengths, f"{label} seconds": seconds}
    axes.set(xscale="log", yscale="log", xlabel="tokens T", ylabel="seconds of one head")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "In blocks of 64 tokens (lines) time is linear in the tokens; a matrix of all tokens (dashes) costs their square."
    return caption, numbers


if __name__ == "__main__":
    common.run(
        "Time and memory of token mixers against the number of tokens.",
        {"Seconds of a sequence, blocks of 64": growth, "One token after the other over blocks": blocks, "Memory": memory},
        draw,
    )
