"""Attention by hand and the transformers of torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import CAUSAL, Case, inputs, integers


class Block(nn.Module):
    """Attention and feed-forward, with norms at the start of each branch or none."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(6), nn.LayerNorm(6)) if norm else (nn.Identity(), nn.Identity())
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByHand(nn.Module):
    """A vision transformer: patches, a class token, attention written out, causal or not."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.patches, self.qkv, self.out = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 18), nn.Linear(6, 6)
        self.token, self.norm1, self.norm2 = nn.Parameter(torch.zeros(1, 1, 6)), nn.LayerNorm(6), nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 6))
        self.head, self.causal = nn.Linear(6, 2), causal

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / 3**0.5
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.attend(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


class LinearAttention(nn.Module):
    """Positive features of queries and keys replace the softmax: nonlinearities behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(5, width) for width in (6, 6, 4, 4))
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.elu(self.query(x)) + 1, F.elu(self.key(x)) + 1
        context = key.transpose(1, 2) @ self.value(x)
        return self.out(query @ context / (query @ key.sum(1)[:, :, None]))


def encoder(**options) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.1, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class LanguageModel(nn.Module):
    """An encoder of torch made causal by its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(11, 6), encoder(activation="gelu"), nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.body(self.table(tokens), mask=mask, is_causal=True))


class Translator(nn.Module):
    """The source is read whole, the target step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.encoder, self.head = nn.Embedding(11, 6), encoder(), nn.Linear(6, 11)
        layer = nn.TransformerDecoderLayer(6, 2, 10, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        memory = self.encoder(self.table(source))
        return self.head(self.decoder(self.table(target), memory, tgt_mask=mask))


TOKENS = inputs((4, 6))
LAYERS = tuple((f"layers.{index}.linear1", "relu") for index in range(2))
CASES = (
    Case("attention_block", Block, TOKENS, (("up", "gelu"),), (10,)),
    Case("attention_block_unnormed", lambda: Block(False), TOKENS, (("up", "gelu"),), (10,)),
    Case("vision_transformer", ByHand, inputs((3, 8, 8)), (("mlp.0", "gelu"),), (12,), random=True),
    Case(
        "causal_by_hand",
        lambda: ByHand(True),
        inputs((3, 8, 8)),
        (),
        (),
        (("gelu", CAUSAL),),
        random=True,
    ),
    Case("linear_attention", LinearAttention, inputs((4, 5)), (("query", "elu"), ("key", "elu")), (6, 6)),
    Case("transformer_encoder", encoder, TOKENS, LAYERS, (10, 10), random=True),
    # In eval mode without gradients torch runs such a layer as one fused call; train mode draws dropout.
    Case("transformer_encoder_in_eval_mode", lambda: encoder().eval(), TOKENS, LAYERS, (10, 10), random=True),
    Case(
        "transformer_encoder_norm_first",
        lambda: encoder(norm_first=True, activation=F.silu),
        TOKENS,
        tuple((layer, "silu") for layer, _ in LAYERS),
        (10, 10),
        random=True,
    ),
    Case("transformer_encoder_causal", LanguageModel, integers(11, (5,)), (), (), (("gelu", CAUSAL),), random=True),
    Case(
        "transformer_decoder",
        Translator,
        integers(11, (6,), (5,)),
        tuple((f"encoder.{layer}", op) for layer, op in LAYERS),
        (10, 10),
        (("relu", CAUSAL),),
        random=True,
        fullgraph=False,
        exportable=False,
    ),
)
