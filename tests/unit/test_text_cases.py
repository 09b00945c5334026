"""The compositional benchmark: what it refuses to measure."""

import pytest

from data_pipeline.contract import UserError
from modules.reporting.text_cases import refuse_repeated

TRAINING = [("chair", "dots", "red"), ("table", "plain", "blue"), ("", "", "")]


def test_combinations_that_training_never_showed_are_measured():
    refuse_repeated([("chair", "dots", "blue"), ("table", "dots", "red")], TRAINING)


def test_a_combination_that_training_shows_would_measure_memory():
    with pytest.raises(UserError, match=r"1 of 2 held-back captions name what training samples"):
        refuse_repeated([("chair", "dots", "red"), ("table", "dots", "red")], TRAINING)


def test_samples_without_attributes_are_no_repetition():
    refuse_repeated([("", "", "")], TRAINING)
