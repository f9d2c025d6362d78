import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.analysis.number_format import column_text, table_text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 25_000, np.int64(3)], ["1", "25,000", "3"]),
        ([50.0, math.nan, 1500.0], ["50", "–", "1,500"]),
        ([0.91234, 0.5, -0.25], ["0.9123", "0.5000", "−0.2500"]),
        ([1137.5, 450.0], ["1,138", "450"]),
        ([0.0213, 11.8], ["0.02130", "11.80"]),
        ([1.5e-7, 3.0], ["1.50e-07", "3.000"]),
        ([-1.5e18, 0.5], ["−1.50e+18", "0.5000"]),
        ([math.inf, -math.inf, 2.0], ["∞", "−∞", "2"]),
        ([0.0, 0.5], ["0.0000", "0.5000"]),
        ([True, False, np.bool_(True)], ["yes", "no", "yes"]),
        ([None, pd.NA, pd.NaT, "text"], ["–", "–", "–", "text"]),
        ([], []),
    ],
)
def test_columns_read_as_a_person_would_write_them(values, texts):
    assert column_text(values) == texts


@pytest.mark.parametrize("name", ["p", "Holm p", "p value", "sign-flip p", "p (Holm)"])
def test_p_values_are_bounded_not_rounded_to_zero(name):
    assert column_text([0.03125, 1e-7, 1.0, math.nan], name=name) == ["0.031", "< 0.0001", "1", "–"]


def test_words_with_the_letter_p_are_not_p_values():
    assert column_text([0.03125, 0.5], name="steps per epoch") == ["0.0312", "0.5000"]


def test_seconds_have_one_decimal_or_two():
    assert column_text([3.456, 100.0], name="seconds") == ["3.5", "100.0"]
    assert column_text([0.3149, math.inf], name="seconds to target") == ["0.31", "∞"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5))
def test_a_text_read_back_is_the_number_to_three_digits(values):
    for value, text in zip(values, column_text(values), strict=True):
        read = float(re.sub("−", "-", text).replace(",", ""))
        largest = max(abs(v) for v in values)
        # Four digits of the largest number where a column shares its decimals, of each number where it spans decades.
        assert read == pytest.approx(value, rel=5.1e-3, abs=0.0 if largest == 0 else 6e-4 * largest)


def test_tables_keep_order_and_tell_numbers_from_text():
    table = table_text(pd.DataFrame({"median_steps": [10.0, None], "arm": ["a", "b"], "empty": [None, None]}))
    assert table.headers == ("median steps", "arm", "empty")
    assert table.numeric == (True, False, False)
    assert table.rows == (("10", "a", "–"), ("–", "b", "–"))


def test_columns_of_the_same_name_both_stay():
    table = pd.DataFrame([[1, 2]], columns=["low", "low"])
    assert table_text(table).rows == (("1", "2"),)


def test_ends_stand_in_one_column_with_the_decimals_of_their_estimate():
    table = pd.DataFrame(
        {
            "gain": [0.02, 0.5],
            "low": [0.0, math.nan],
            "high": [0.04, math.nan],
            "steps_min": [50, 60],
            "steps_max": [70, 1500],
        }
    )
    text = table_text(table)
    assert text.headers == ("gain", "interval", "steps range")
    assert text.numeric == (True, True, True)
    assert text.rows == (("0.0200", "[0.0000, 0.0400]", "[50, 70]"), ("0.5000", "–", "[60, 1,500]"))


def test_ends_without_their_partner_stay_columns():
    table = pd.DataFrame({"low": [1], "steps_min": [2], "seconds_max": [3], "high": [4]})
    assert table_text(table).headers == ("low", "steps min", "seconds max", "high")
