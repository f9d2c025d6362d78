"""Language models of the transformers library, tiny and with random weights; nothing is downloaded."""

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.case import CAUSAL, GATE, HEAD, RECURRENT, Case, integers

BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
DECODER = {**BERT, "num_key_value_heads": 1, "max_position_embeddings": 16, "use_cache": False}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
# Of the special tokens only the padding matters, and no example holds it: it would draw a warning about a mask.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def tiny(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        # Importing the library takes seconds, which only the tests of its models should spend.
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return make


def words(batch: int) -> tuple[Any, ...]:
    """Five tokens each, none of them the padding."""
    return (integers(19, (5,))(batch)[0] + 1,)


def layers(pattern: str, op: str) -> tuple[tuple[str, str], ...]:
    return tuple((pattern.format(index), op) for index in range(2))


FEED_FORWARD = layers("encoder.layer.{}.intermediate.dense", "gelu")
T5_ENCODER = layers("encoder.block.{}.layer.1.DenseReluDense.wi", "relu")
# A gate in a causal decoder is skipped for two reasons, and a plan may give either.
CAUSAL_GATE = f"{CAUSAL}|{GATE}"
CASES = (
    Case(
        "bert", tiny("BertModel", "BertConfig", **BERT), words, FEED_FORWARD, (12, 12), (("tanh", HEAD),), random=True
    ),
    # The same pooler is no head once a classifier follows.
    Case(
        "bert_classifier",
        tiny("BertForSequenceClassification", "BertConfig", **BERT),
        words,
        (*((f"bert.{layer}", op) for layer, op in FEED_FORWARD), ("bert.pooler.dense", "tanh")),
        (12, 12, 8),
        random=True,
    ),
    Case(
        "distilbert",
        tiny("DistilBertModel", "DistilBertConfig", vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12),
        words,
        layers("transformer.layer.{}.ffn.lin1", "gelu"),
        (12, 12),
        random=True,
    ),
    # All layers share one set of weights, which makes a recurrence over depth.
    Case(
        "albert",
        tiny("AlbertModel", "AlbertConfig", embedding_size=4, **BERT),
        words,
        (),
        (),
        (("newgeluactivation", RECURRENT), ("tanh", HEAD)),
    ),
    Case(
        "gpt2",
        tiny("GPT2Model", "GPT2Config", vocab_size=20, n_embd=8, n_layer=2, n_head=2, use_cache=False, **SPECIAL),
        words,
        (),
        (),
        (("newgeluactivation", CAUSAL),),
        random=True,
    ),
    Case(
        "llama",
        tiny("LlamaModel", "LlamaConfig", **DECODER),
        words,
        (),
        (),
        (("silu", CAUSAL_GATE),),
    ),
    Case(
        "mixtral",
        tiny("MixtralModel", "MixtralConfig", num_local_experts=3, num_experts_per_tok=2, **DECODER),
        words,
        (),
        (),
        (("silu", CAUSAL_GATE),),
    ),
    # Each example must meet every expert: one that gets no token is not called, and is no site.
    Case(
        "switch_encoder",
        tiny(
            "SwitchTransformersEncoderModel",
            "SwitchTransformersConfig",
            num_experts=2,
            num_sparse_encoder_layers=1,
            router_jitter_noise=0.0,
            **T5,
        ),
        words,
        (
            ("encoder.block.0.layer.1.mlp.wi", "relu"),
            *((f"encoder.block.1.layer.1.mlp.experts.expert_{index}.wi", "relu") for index in range(2)),
        ),
        (12, 12, 12),
        random=True,
        fullgraph=False,
        exportable=False,
    ),
    Case(
        "t5",
        tiny("T5Model", "T5Config", decoder_start_token_id=0, use_cache=False, **T5),
        words,
        T5_ENCODER,
        (12, 12),
        (("relu", CAUSAL),),
        kwargs=lambda batch: {"decoder_input_ids": integers(20, (4,))(batch)[0]},
        random=True,
    ),
    # A state space model reads left to right through its convolution and scan, with no attention and no
    # mask to tell: statistics over time would leak the future all the same.
    Case(
        "mamba",
        tiny(
            "MambaModel",
            "MambaConfig",
            vocab_size=20,
            hidden_size=8,
            state_size=4,
            num_hidden_layers=2,
            use_cache=False,
        ),
        words,
        (),
        (),
        (("silu", CAUSAL_GATE), ("softplus", CAUSAL_GATE)),
    ),
)
