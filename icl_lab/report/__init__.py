"""Figures (functions that draw on axes, and the style of all of them) and tables. Imports matplotlib, so import it late."""

from icl_lab.report.figures import decay as decay
from icl_lab.report.figures import heat_maps as heat_maps
from icl_lab.report.figures import invariant_drift as invariant_drift
from icl_lab.report.figures import risk_curves as risk_curves
from icl_lab.report.style import house_style as house_style
from icl_lab.report.style import save as save
from icl_lab.report.tables import Table as Table
from icl_lab.report.tables import check_table as check_table
from icl_lab.report.tables import claim_sections as claim_sections
from icl_lab.report.tables import verified_table as verified_table
