import functools

from tiny import TinyNet

from bn_lightning.analysis.module_options import takes_options
from bn_lightning.analysis.problems.digits_model import DigitsMLP


def helper(*classes, **options):
    return classes[0](**options)


def test_a_class_is_asked_itself_also_inside_the_command_lines_partial():
    assert takes_options(DigitsMLP, "depth", "activation")
    assert not takes_options(TinyNet, "depth")
    assert not takes_options(functools.partial(helper, TinyNet), "depth")
    assert takes_options(functools.partial(helper, DigitsMLP, lr=0.1), "depth")


def test_a_function_of_any_options_takes_them_and_one_of_none_does_not():
    assert takes_options(lambda **options: TinyNet(**options), "depth")
    assert not takes_options(lambda: TinyNet(), "depth")


def test_options_that_a_partial_gives_already_can_be_given_again():
    assert takes_options(functools.partial(DigitsMLP, depth=5), "depth")


def test_what_tells_nothing_before_it_is_called_is_given_the_benefit_of_the_doubt():
    assert takes_options(dict, "depth")
