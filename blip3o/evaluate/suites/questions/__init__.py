"""Suites that ask questions about images: VQA, MME and multiple choice. Called by the registry.

`common` holds what they share: the file format, the accuracy score, and the judge that takes replies as they are.
"""
