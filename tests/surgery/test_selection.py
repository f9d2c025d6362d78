import pytest
import torch
from cases import ResidualNet
from torch import nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.surgery.planning import plan_insertion


def mixed() -> nn.Module:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten())
    return nn.Sequential(trunk, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))


def inserted(model: nn.Module, **options) -> list[str]:
    return [site.name for site in plan_insertion(model, (torch.randn(4, 3, 8, 8),), **options).inserted]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["0.1", "0.3", "2"]),
        ({"include": ["0.*"]}, ["0.1", "0.3"]),
        ({"include": [nn.Conv2d]}, ["0.1", "0.3"]),
        ({"include": [nn.Linear, nn.Tanh]}, ["0.3", "2"]),
        ({"exclude": [nn.ReLU]}, ["0.3"]),
        ({"include": ["0.*"], "exclude": [nn.Tanh]}, ["0.1"]),
        ({"exclude": ["0.1", "2"]}, ["0.3"]),
        ({"include": (pattern for pattern in ["2"])}, ["2"]),
    ],
)
def test_patterns_and_types_choose_sites(options, expected):
    assert inserted(mixed(), **options) == expected


def test_a_type_chooses_every_site_within_such_a_module():
    model = ResidualNet()
    block = type(model.blocks[0])
    assert inserted(model, exclude=[block]) == ["relu_0"]
    assert inserted(model, include=[block]) == [name for name in inserted(model) if name.startswith("blocks.")]


def test_what_was_not_chosen_says_so():
    plan = plan_insertion(mixed(), (torch.randn(4, 3, 8, 8),), include=["0.*"], exclude=[nn.Tanh])
    assert [site.reason for site in plan.skipped] == ["excluded by Tanh", "not among the included"]


def test_a_site_that_the_rules_skip_stays_skipped_for_their_reason():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1), nn.Sigmoid())
    plan = plan_insertion(model, (torch.randn(4, 4),), include=["1"])
    assert "output head" in plan.skipped[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["encoder.*"]}, r"No site matches 'encoder\.\*' of include; the model's sites are: 0\.1, 0\.3, 2"),
        ({"exclude": [nn.Conv1d]}, "No site matches Conv1d of exclude"),
    ],
)
def test_what_matches_nothing_is_refused(options, message):
    with pytest.raises(UnknownNameError, match=message):
        inserted(mixed(), **options)


@pytest.mark.parametrize(("given", "words"), [("0.*", r"\['0\.\*'\]"), (nn.ReLU, r"\[ReLU\]")])
def test_one_selector_instead_of_several_is_refused(given, words):
    with pytest.raises(TypeError, match=f"include takes several patterns or module types, such as {words}"):
        inserted(mixed(), include=given)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_module_itself_is_no_selector(option):
    model = mixed()
    with pytest.raises(TypeError, match=f"{option} takes patterns of site names and module types, not a Linear itself"):
        inserted(model, **{option: [model[1]]})
