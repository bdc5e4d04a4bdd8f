"""Tests of the data sets that the project makes itself."""
