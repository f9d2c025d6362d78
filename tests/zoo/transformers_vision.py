"""Vision and speech models of the transformers library, tiny and with random weights."""

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.case import HEAD, NORMALISED, Case, inputs
from zoo.transformers_ import BERT, SPECIAL, layers, tiny

IMAGE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 8}


def whisper_encoder() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12}
    return WhisperEncoder(
        WhisperConfig(
            num_mel_bins=4, max_source_positions=6, vocab_size=20, decoder_start_token_id=0, **sizes, **SPECIAL
        )
    )


def pixels(size: int) -> Callable[[int], tuple[Any, ...]]:
    return inputs((3, size, size))


CASES = (
    Case(
        "vit",
        tiny("ViTModel", "ViTConfig", patch_size=4, **IMAGE),
        pixels(8),
        layers("layers.{}.mlp.fc1", "gelu"),
        (12, 12),
        (("tanh", HEAD),),
    ),
    Case(
        "clip_vision",
        tiny("CLIPVisionModel", "CLIPVisionConfig", patch_size=4, **IMAGE),
        pixels(8),
        layers("encoder.layers.{}.mlp.fc1", "quickgeluactivation"),
        (12, 12),
    ),
    Case(
        "swin",
        tiny(
            "SwinModel",
            "SwinConfig",
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            drop_path_rate=0.0,
        ),
        pixels(16),
        layers("encoder.layers.{}.blocks.0.mlp.fc1", "gelu"),
        (32, 64),
    ),
    Case(
        "convnext",
        tiny("ConvNextModel", "ConvNextConfig", num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], patch_size=2),
        pixels(16),
        layers("encoder.stages.{}.layers.0.pwconv1", "gelu"),
        (16, 32),
    ),
    Case(
        "resnet",
        tiny(
            "ResNetModel", "ResNetConfig", embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], layer_type="bottleneck"
        ),
        pixels(32),
        (),
        (),
        (("relu", NORMALISED),),
    ),
    Case(
        "whisper_encoder",
        whisper_encoder,
        inputs((4, 12)),
        (("conv1", "gelu"), ("conv2", "gelu"), ("layers.0.fc1", "gelu")),
        (8, 8, 12),
    ),
    # The first of the convolutions has a group norm, the others have none.
    Case(
        "wav2vec2",
        tiny(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            conv_dim=[4, 6],
            conv_kernel=[4, 3],
            conv_stride=[2, 2],
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
            layerdrop=0.0,
            **BERT,
        ),
        inputs((64,)),
        (
            ("feature_extractor.conv_layers.1.conv", "gelu"),
            ("encoder.pos_conv_embed.conv", "gelu"),
            *layers("encoder.layers.{}.feed_forward.intermediate_dense", "gelu"),
        ),
        (6, 8, 12, 12),
        (("gelu", NORMALISED),),
        random=True,
        fullgraph=False,
    ),
)
