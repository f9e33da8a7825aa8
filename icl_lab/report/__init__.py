"""Figures (functions that draw on axes, and the style of all of them) and tables. Figures load matplotlib on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_lab.core import lazy
from icl_lab.report.tables import Table as Table
from icl_lab.report.tables import check_table as check_table
from icl_lab.report.tables import claim_sections as claim_sections
from icl_lab.report.tables import verified_table as verified_table

if TYPE_CHECKING:
    from icl_lab.report.figures import decay as decay
    from icl_lab.report.figures import heat_maps as heat_maps
    from icl_lab.report.figures import invariant_drift as invariant_drift
    from icl_lab.report.figures import risk_curves as risk_curves
    from icl_lab.report.style import house_style as house_style
    from icl_lab.report.style import save as save

__getattr__ = lazy.names(
    __name__,
    {
        "decay": "figures",
        "heat_maps": "figures",
        "invariant_drift": "figures",
        "risk_curves": "figures",
        "house_style": "style",
        "save": "style",
    },
)
