"""The zoo: models of many fields, with hand-made labels of where norms belong."""

from zoo import (
    attention,
    axes,
    basics,
    convolutional,
    forms,
    functional,
    gates,
    heads,
    hostile,
    norms,
    parametrized,
    recurrent,
    residual,
    routing,
    sets,
    transformers_,
    transformers_vision,
)
from zoo.case import Case

ZOO: tuple[Case, ...] = (
    *basics.CASES,
    *forms.CASES,
    *heads.CASES,
    *convolutional.CASES,
    *axes.CASES,
    *residual.CASES,
    *norms.CASES,
    *gates.CASES,
    *recurrent.CASES,
    *attention.CASES,
    *sets.CASES,
    *functional.CASES,
    *parametrized.CASES,
    *routing.CASES,
    *hostile.CASES,
    *transformers_.CASES,
    *transformers_vision.CASES,
)
