"""Tests of budgets: memory and FLOPs against what is measured, time and money against formulas by hand."""
