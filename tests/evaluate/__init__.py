"""Tests of the scores, against worlds and models whose true score is known."""
