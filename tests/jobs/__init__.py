"""Tests of the jobs, from the command line to the files they leave."""
