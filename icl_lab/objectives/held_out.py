"""What weights that were trained on a sample do on other prompts, and how far that number can be trusted."""

from __future__ import annotations

import equinox as eqx

HEAVY = 0.05
"""Share of one of 20,000 prompts in the variance of squared errors above which they have heavy tails; 0.002 for normal ones."""


class HeldOut(eqx.Module):
    """The risk of weights on prompts that the moments have not seen.

    Attributes:
      risk, standard_error: mean squared error over the fresh prompts.
      gap, gap_error: `risk` less that on the moments themselves; positive for weights that were fitted to these.
      largest_share: of one prompt in the variance behind `standard_error`.
      prompts: how many were drawn.
    """

    risk: float
    standard_error: float
    gap: float
    gap_error: float
    largest_share: float
    prompts: int = eqx.field(static=True)

    def __str__(self) -> str:
        gap = f"{self.gap:.3g} ± {self.gap_error:.2g} above the sample's"
        return f"held-out risk {self.risk:.6g} ± {self.standard_error:.2g}, {gap}{self.tail}"

    @property
    def tail(self) -> str:
        """A warning where one prompt makes up so much of the variance that the standard error says little, else nothing."""
        if self.largest_share <= HEAVY:
            return ""
        share = f"{100 * self.largest_share:.0f} % of the variance"
        return f" (heavy tails: one of {self.prompts} prompts makes up {share}, and the standard error is too small)"
