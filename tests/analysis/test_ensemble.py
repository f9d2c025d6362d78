import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch.testing import assert_close

from bn_lightning.analysis.ensemble import average_probabilities, class_probabilities, sum_to_one, top_k_error
from bn_lightning.errors import NonFiniteError, UnknownNameError


def logits(samples=7, classes=6, seed=0, dtype=torch.float32):
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_become_the_softmax_in_float64(dtype):
    output = logits(dtype=dtype) * 5
    expected = softmax(output.double().numpy(), axis=1)
    for outputs in ("auto", "logits"):
        assert_close(class_probabilities(output, outputs), torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_stay_what_they_are_but_for_the_rounding_of_their_sum(dtype):
    output = logits(samples=40, classes=1000, dtype=dtype).softmax(1)
    values = output.double().numpy()
    expected = torch.from_numpy(values / values.sum(1, keepdims=True))
    for outputs in ("auto", "probabilities"):
        assert_close(class_probabilities(output, outputs), expected)


def test_log_probabilities_become_probabilities():
    output = logits()
    assert_close(class_probabilities(output.double().log_softmax(1)), class_probabilities(output))


def test_logits_that_are_masked_out_are_classes_of_probability_zero():
    output = torch.tensor([[0.0, -float("inf"), 0.0]])
    assert_close(class_probabilities(output), torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64))


def test_one_row_that_does_not_sum_to_one_makes_all_of_them_logits():
    output = torch.tensor([[0.25, 0.75], [0.25, 0.5]])
    assert not sum_to_one(output)
    assert sum_to_one(output[:1])
    assert_close(class_probabilities(output), torch.from_numpy(softmax(output.double().numpy(), axis=1)))


def test_what_are_no_probabilities_is_said_with_the_values_found():
    with pytest.raises(ValueError, match=r"values from -1 to 3, sums from 2 to 2.*outputs=\"logits\""):
        class_probabilities(torch.tensor([[-1.0, 3.0]]), "probabilities")


@pytest.mark.parametrize("outputs", ["auto", "logits", "probabilities"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_with_its_row(outputs, value):
    output = logits()
    output[[2, 5], 1] = value
    with pytest.raises(NonFiniteError, match=r"2 of 7 rows of class probabilities are NaN, the first is row 2"):
        class_probabilities(output, outputs)


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (torch.zeros(3), ValueError, r"\[N, C\] with two classes or more, but this one returned \[3\]"),
        (torch.zeros(3, 1), ValueError, r"returned \[3, 1\].*single logit"),
        (torch.zeros(3, 2, 4), ValueError, r"returned \[3, 2, 4\]"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "returned torch.int64"),
        ({"logits": torch.zeros(3, 2)}, TypeError, r"returned dict.*--output"),
    ],
)
def test_outputs_that_are_none_of_a_classifier(output, error, words):
    with pytest.raises(error, match=words):
        class_probabilities(output)


def test_an_unknown_kind_of_outputs():
    with pytest.raises(UnknownNameError, match=r"no kind of outputs 'logit'. Did you mean 'logits'"):
        class_probabilities(logits(), "logit")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 6), st.integers(0, 1000))
def test_the_average_is_that_of_numpy_in_float64(members, samples, classes, seed):
    parts = [logits(samples, classes, seed + member).softmax(1) for member in range(members)]
    expected = np.mean(np.stack([part.numpy().astype(np.float64) for part in parts]), axis=0)
    kept = [part.clone() for part in parts]
    assert_close(average_probabilities(iter(parts)), torch.from_numpy(expected))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, kept, strict=True))


def test_parts_in_float64_are_not_written_to():
    parts = [logits(dtype=torch.float64).softmax(1) for _ in range(3)]
    kept = [part.clone() for part in parts]
    average_probabilities(parts)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, kept, strict=True))


def test_the_mean_of_probabilities_is_not_that_of_logits():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    average = average_probabilities([class_probabilities(sure), class_probabilities(unsure)])
    assert average[0, 0] < class_probabilities((sure + unsure) / 2)[0, 0] - 0.3


def test_nothing_to_average_and_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="nothing to average: no member, or no view"):
        average_probabilities([])
    with pytest.raises(ValueError, match=r"part 2 is \[7, 4\], those before are \[7, 6\]"):
        average_probabilities([logits(), logits(classes=4)])
    with pytest.raises(NonFiniteError, match="Part 2 of the average holds class probabilities that are NaN"):
        average_probabilities([logits(), logits() * float("nan")])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_errors_are_those_counted_by_sorting(k):
    probabilities = class_probabilities(logits(samples=501, classes=9))
    target = torch.randint(9, (501,), generator=torch.Generator().manual_seed(1))
    ranked = np.argsort(-probabilities.numpy(), axis=1)[:, :k]
    expected = np.mean([label not in row for label, row in zip(target.tolist(), ranked.tolist(), strict=True)])
    assert top_k_error(probabilities, target, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("target", "k", "words"),
    [
        (torch.zeros(7, dtype=torch.int64), 6, r"top-6 error of 6 classes says nothing: k is from 1 to 5"),
        (torch.zeros(7, dtype=torch.int64), 0, "k is from 1 to 5"),
        (torch.zeros(7), 1, r"as a whole number, \[7\], but it is torch.float32 \[7\]"),
        (torch.zeros(7, 6, dtype=torch.int64), 1, r"it is torch.int64 \[7, 6\]"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6]), 1, "reach from 0 to 6, those of the outputs from 0 to 5"),
        (torch.tensor([-1, 1, 2, 3, 4, 5, 5]), 1, "reach from -1 to 5"),
    ],
)
def test_targets_and_k_of_another_form(target, k, words):
    with pytest.raises(ValueError, match=words):
        top_k_error(class_probabilities(logits()), target, k)


def test_no_sample():
    with pytest.raises(ValueError, match="no sample to take an error over"):
        top_k_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
