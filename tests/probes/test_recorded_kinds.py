import pytest

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.recorded_kinds import checked_record


def test_words_come_in_the_order_in_which_they_are_kept_each_once():
    assert checked_record(["gradients", "activations", "preactivations", "gradients"]) == (
        "preactivations",
        "activations",
        "gradients",
    )
    assert checked_record("activations") == ("activations",)
    assert checked_record((), with_outputs=True) == ()


@pytest.mark.parametrize("record", [(), "gradients", ["gradients"]])
def test_nothing_to_record_is_refused(record):
    with pytest.raises(ValueError, match=r"leaves nothing to record: name 'preactivations' or 'activations'"):
        checked_record(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("activation", "not 'activation'. Did you mean 'activations'"),
        (["preactivations", "grads"], "takes 'preactivations', 'activations' and 'gradients', not 'grads'"),
        ([3], "not 3"),
    ],
)
def test_unknown_words_are_refused(record, message):
    with pytest.raises(UnknownNameError, match=message):
        checked_record(record, with_outputs=True)
