"""Moments of AR(p) series and of random AR(p) coefficients, and risks of estimators on them."""
