"""Estimators of accuracy with intervals, quantiles and majority votes."""
