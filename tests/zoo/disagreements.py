"""The models whose plan is not that of their label, each with the reason why the plan stands."""

DISAGREEMENTS = {
    "mamba": "Skipped as causal by the label. No attention and no mask shows it; a causal convolution alone is also "
    "that of nets which read out at the last step, where nothing leaks.",
    "wav2vec2": "The label inserts at the last convolution of the feature extractor. The layer norm of the projection "
    "stands right behind that activation.",
}
