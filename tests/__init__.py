"""The tests mirror the tree. This file must exist: without it `tests/serve` would shadow the package `serve`."""
