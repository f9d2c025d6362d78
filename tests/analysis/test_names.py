from bn_lightning.analysis.names import unknown_name
from bn_lightning.errors import UnknownNameError


def test_names_far_from_all_are_answered_with_all():
    error = unknown_name("study", "zzz", ["renorm", "placement"])
    assert isinstance(error, UnknownNameError)
    assert str(error) == "There is no study 'zzz'. There are: placement, renorm."
