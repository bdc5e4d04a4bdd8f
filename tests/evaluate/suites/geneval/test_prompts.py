"""The regenerated prompts are the official files, byte for byte."""

import hashlib
from collections import Counter

from blip3o.evaluate.suites.geneval.prompts import CLASSES, METADATA_SHA256, PROMPTS_SHA256, TAGS, line, records

CLASSES_SHA256 = "608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd"


def sha256(lines):
    return hashlib.sha256("".join(f"{text}\n" for text in lines).encode()).hexdigest()


def test_both_official_files_come_out_byte_for_byte():
    rows = records()
    assert sha256(line(row) for row in rows) == METADATA_SHA256
    assert sha256(row["prompt"] for row in rows) == PROMPTS_SHA256


def test_the_vocabulary_is_the_official_one():
    assert sha256(CLASSES) == CLASSES_SHA256
    assert tuple(Counter(row["tag"] for row in records()).items()) == tuple(
        zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True)
    )
