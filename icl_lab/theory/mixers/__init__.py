"""Closed forms for token mixers as in-context learners: risks of fixed gates, best gates, and the filter that none beats."""
