"""The fused inference path of torch's encoder layers would pass the activations, and their norms, by."""

import pytest
import torch
from function_model import sites_of
from torch import nn

from bn_lightning.surgery.insert import insert_batch_norm


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_tracing_meets_the_activations_in_either_mode(training, padded):
    padding = torch.arange(5).expand(4, 5) > 2
    kwargs = {"src_key_padding_mask": padding} if padded else {}
    sites = sites_of(encoder().train(training), torch.randn(4, 5, 8), kwargs=kwargs)
    assert [(site.layer, site.decision) for site in sites] == [
        ("layers.0.linear1", "insert"),
        ("layers.1.linear1", "insert"),
    ]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_in_eval_mode_the_norms_act(placement):
    model, x = encoder(), torch.randn(4, 5, 8)
    insert_batch_norm(model, (x,), placement=placement)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(1, 3)
    with torch.no_grad():
        fused = model.eval()(x)
        # In train mode torch takes no fused path; the norms alone stay in eval mode.
        model.train()
        for norm in norms:
            norm.eval()
        torch.testing.assert_close(fused, model(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_sequences_that_torch_nests_behind_a_padding_mask_get_their_norms():
    model, x = encoder(), torch.randn(4, 5, 8)
    padding = torch.arange(5).expand(4, 5) >= torch.tensor([5, 3, 4, 2])[:, None]
    insert_batch_norm(model, (x,), {"src_key_padding_mask": padding})
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(1, 3)
    model.eval()
    expected = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        nested = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(nested[~padding], expected[~padding])
