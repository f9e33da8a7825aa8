"""Claims about risks: the layer under shift, least squares, ridge and Bayes."""
