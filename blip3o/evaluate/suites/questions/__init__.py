"""Suites that ask questions about pictures: VQA, multiple choice, MME."""
