import math

import pytest

from bn_lightning.probes.loss_smoothness_steps import sign_of, steps_along_gradient


def test_step_sizes_are_absolute_or_multiples_of_the_rate():
    assert steps_along_gradient(step_sizes=(3, 1, 3)) == (1.0, 3.0)
    assert steps_along_gradient(learning_rate=0.5, multiples=(0.5, 1)) == (0.25, 0.5)
    assert steps_along_gradient(learning_rate=0.5, max_step_size=0.4) == (0.25, 0.4)
    with pytest.raises(ValueError, match="No learning rate is known to take multiples of"):
        steps_along_gradient()
    for bad in ((), (0.0,), (-1.0, 1.0), (math.inf,)):
        with pytest.raises(ValueError, match="Step sizes must be positive and finite"):
            steps_along_gradient(step_sizes=bad)


def test_descent_goes_down_the_gradient():
    assert (sign_of("descent"), sign_of("ascent")) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="A direction is 'descent' or 'ascent', not 'up'"):
        sign_of("up")
