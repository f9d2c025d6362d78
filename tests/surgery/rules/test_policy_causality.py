"""Causal decoders: statistics over time would show a position its future."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn

from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.tracing.attention import hides_future, is_causal

TIME = 5
LATER = torch.ones(TIME, TIME).triu(1).bool()
ADDED = torch.zeros(TIME, TIME).masked_fill(LATER, float("-inf"))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / 2


CAUSAL = {
    "is_causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~LATER),
    "added mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=ADDED),
    "masked_fill": lambda q, k, v: scores(q, k).masked_fill(LATER, float("-inf")).softmax(-1) @ v,
    "lowest number": lambda q, k, v: F.softmax(scores(q, k).masked_fill(LATER, torch.finfo().min), dim=-1) @ v,
    "minus ten thousand": lambda q, k, v: torch.softmax(scores(q, k) - 1e4 * LATER, 2) @ v,
    "where": lambda q, k, v: torch.bmm(torch.where(LATER, -torch.inf, scores(q, k)).softmax(-1), v),
    "tril of weights": lambda q, k, v: scores(q, k).tril() @ v,
    "einsum": lambda q, k, v: torch.einsum(
        "bts,bsc->btc", (torch.einsum("btc,bsc->bts", q, k) + ADDED).softmax(dim=-1), v
    ),
}
SEEING_ALL = {
    "no mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "softmax": lambda q, k, v: scores(q, k).softmax(-1) @ v,
    "the past hidden": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, LATER | torch.eye(TIME).bool()),
    "padding hidden": lambda q, k, v: scores(q, k).masked_fill(torch.arange(TIME) > 2, -torch.inf).softmax(-1) @ v,
    "softmax over channels": lambda q, k, v: q.softmax(-1) * v,
}


def block(attention) -> Function:
    def run(model: Function, x: Tensor) -> Tensor:
        h = F.relu(model.stem(x))
        h = h + attention(model.q(h), model.k(h), model.v(h))
        return model.head(F.gelu(model.mlp(h)))

    layers = {name: nn.Linear(4, 4) for name in ("stem", "q", "k", "v", "mlp", "head")}
    return Function(run, **layers)


@pytest.mark.parametrize("name", CAUSAL)
def test_sites_before_and_behind_causal_attention_are_skipped(name):
    sites = sites_of(block(CAUSAL[name]), torch.randn(6, TIME, 4))
    assert [(site.op, site.decision) for site in sites] == [("relu", "skip"), ("gelu", "skip")]
    assert all("causal attention in 'the model': statistics over time would leak" in site.reason for site in sites)
    assert all("plan.override" in site.reason for site in sites)


@pytest.mark.parametrize("name", SEEING_ALL)
def test_attention_that_sees_everything_is_not_causal(name):
    sites = sites_of(block(SEEING_ALL[name]), torch.randn(6, TIME, 4))
    assert [site.decision for site in sites] == ["insert", "insert"]


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_of_single_positions_leak_nothing(norm):
    sites = sites_of(block(CAUSAL["is_causal"]), torch.randn(6, TIME, 4), norm=norm)
    assert [site.decision for site in sites] == ["insert", "insert"]


def test_the_plan_can_be_overridden():
    plan = plan_insertion(block(CAUSAL["is_causal"]), (torch.randn(6, TIME, 4),))
    assert len(plan.override("*", "insert").inserted) == 2


@pytest.mark.parametrize("fast", [True, False])
def test_torchs_own_attention_with_a_mask(fast):
    def run(model: Function, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(TIME)
        h, _ = model.attend(x, x, x, attn_mask=mask, is_causal=fast, need_weights=not fast)
        return model.head(F.relu(model.mlp(h)))

    model = Function(
        run, attend=nn.MultiheadAttention(4, 2, batch_first=True), mlp=nn.Linear(4, 4), head=nn.Linear(4, 1)
    )
    (site,) = sites_of(model, torch.randn(6, TIME, 4))
    assert "causal attention in 'attend'" in site.reason


def test_a_single_position_has_no_future():
    sites = sites_of(block(CAUSAL["is_causal"]), torch.randn(6, 1, 4))
    assert [site.decision for site in sites] == ["insert", "insert"]


def classifier(pick) -> Function:
    def run(model: Function, x: Tensor) -> Tensor:
        h = CAUSAL["is_causal"](model.q(x), x, x)
        return model.head(F.relu(model.mlp(pick(h))))

    return Function(run, q=nn.Linear(4, 4), mlp=nn.Linear(4, 4), head=nn.Linear(4, 1))


def test_behind_the_last_position_there_is_no_time_left_to_pool():
    for pick in (lambda h: h[:, -1], lambda h: h[:, -1:]):
        (site,) = sites_of(classifier(pick), torch.randn(6, TIME, 4))
        assert site.decision == "insert"


def test_positions_flattened_into_the_batch_are_still_positions():
    (site,) = sites_of(classifier(lambda h: h.flatten(0, 1)), torch.randn(6, TIME, 4))
    assert "causal" in site.reason


def test_an_encoder_that_a_decoder_attends_over_keeps_its_norms():
    def run(model: Function, source: Tensor, target: Tensor) -> Tensor:
        memory = model.enc2(F.relu(model.enc1(source)))
        h = target
        for turn in range(2):  # in the second turn the encoder lies above causal attention
            h = h + F.scaled_dot_product_attention(model.q[turn](h), h, h, is_causal=True)
            h = h + scores(model.c[turn](h), memory).softmax(-1) @ memory
            h = h + model.down[turn](F.gelu(model.up[turn](h)))
        return model.head(h)

    lists = {name: nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for name in ("q", "c", "up", "down")}
    model = Function(run, enc1=nn.Linear(4, 4), enc2=nn.Linear(4, 4), head=nn.Linear(4, 2), **lists)
    sites = sites_of(model, torch.randn(6, TIME, 4), torch.randn(6, TIME, 4))
    assert [(site.layer, site.decision) for site in sites] == [("enc1", "insert"), ("up.0", "skip"), ("up.1", "skip")]


def test_layers_beside_the_attention_read_the_same_positions():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.head(CAUSAL["is_causal"](x, x, x) + model.down(F.relu(model.up(x))))

    layers = {name: nn.Linear(4, 4) for name in ("up", "down", "head")}
    (site,) = sites_of(Function(run, **layers), torch.randn(6, TIME, 4))
    assert "causal" in site.reason


def test_masks_may_be_longer_than_the_queries_and_batched():
    hidden = torch.ones(3, 5).triu(3).bool()  # the last query and key are at the same time
    assert hides_future(hidden)
    assert hides_future(hidden.expand(2, 4, 3, 5))
    assert not hides_future(torch.ones(3, 3).bool())
    assert not hides_future(torch.ones(5, 3).triu(1).bool())
    assert not hides_future(torch.ones(3).bool())
    assert not is_causal("scaled_dot_product_attention", (torch.randn(2, 3, 4),) * 3, {})
