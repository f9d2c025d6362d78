import pytest
import torch
import torch.nn.functional as F
from function_model import Function
from torch import nn

from bn_lightning.errors import NormOptionError, PlanMismatchError, UnknownNameError
from bn_lightning.surgery.insert import insert_batch_norm

X = torch.randn(8, 6)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"inputs": True}, "inputs=True"),
        ({"inputs": True}, {}, "inputs=False"),
        ({}, {"include": ["1"]}, r"without 3 \(include\)"),
        ({}, {"include": [nn.ReLU]}, r"without 3 \(include\)"),
        ({}, {"exclude": [nn.Tanh]}, r"without 3 \(exclude\)"),
        ({}, {"exclude": (pattern for pattern in ["*"])}, r"without 1, 3 \(exclude\)"),
        ({}, {"bias": "keep"}, "bias='keep'"),
        ({}, {"norm_options": {"eps": 0.1}}, r"batch, before, eps=0\.1"),
    ],
)
def test_a_second_insertion_with_other_choices_is_refused(first, second, words):
    model = mlp()
    insert_batch_norm(model, (X,), **first)
    with pytest.raises(PlanMismatchError, match=rf"others were asked for \(.*{words}\)"):
        insert_batch_norm(model, (X,), **second)


@pytest.mark.parametrize("options", [{"inputs": True}, {"include": ["1"]}, {"exclude": [nn.Tanh]}, {"bias": "keep"}])
def test_a_second_insertion_with_the_same_choices_changes_nothing(options):
    model = mlp()
    plan = insert_batch_norm(model, (X,), **options)
    assert insert_batch_norm(model, (X,), **options) is plan


def test_norms_on_branches_are_not_taken_for_norms_on_the_sum():
    model = Function(lambda model, x: model.b(F.relu(x + model.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 2))
    plan = insert_batch_norm(model, (X,), site="affine")
    assert insert_batch_norm(model, (X,), site="affine") is plan
    with pytest.raises(PlanMismatchError, match="site='nonlinearity'"):
        insert_batch_norm(model, (X,))


def test_a_second_insertion_checks_its_options_as_the_first_does():
    model = mlp()
    insert_batch_norm(model, (X,))
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        insert_batch_norm(model, (X,), momentum=0.1)
    with pytest.raises(UnknownNameError, match="site is 'nonlinearity' or 'affine', not 'branch'"):
        insert_batch_norm(model, (X,), site="branch")
    with pytest.raises(NormOptionError, match="'eps' of the batch norm is -1"):
        insert_batch_norm(model, (X,), norm_options={"eps": -1})
