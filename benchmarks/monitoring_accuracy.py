"""How far what is recorded of activations lies from float64: moments on hard cases, percentiles in training.

python benchmarks/monitoring_accuracy.py [moments|sampled|percentiles]
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.probes.recording import record_activations
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations

REPETITIONS = 200


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape: int) -> Tensor:
    """Student's t with five degrees of freedom: the kurtosis exists, the fourth power hardly converges."""
    return random(*shape) / (sum(random(*shape, seed=seed) ** 2 for seed in range(1, 6)) / 5).sqrt()


def spoilt(*shape: int) -> Tensor:
    x = random(*shape)
    x.view(-1)[::1001] = torch.nan
    x.view(-1)[7::2003] = torch.inf
    x.view(-1)[11::3001] = -torch.inf
    return x


CASES: dict[str, Callable[[], Tensor]] = {
    "mean 1e4, sd 1e-2": lambda: random(1_000_000, 4) * 1e-2 + 1e4,
    "bf16, mean 100": lambda: (random(1_000_000, 4) + 100).bfloat16(),
    "1e8 elements": lambda: random(100_000_000, 1),
    "1e7 elements, 64 channels, images": lambda: random(16, 64, 100, 100) * 2 + 3,
    "NaN and infinities among them": lambda: spoilt(1_000_000, 4),
    "constant channels": lambda: torch.full((1_000_000, 4), 1e4 / 3),
    "heavy tails": lambda: heavy(1_000_000, 4),
}


def moments(x: np.ndarray) -> dict[str, float]:
    mean = x.mean()
    d = x - mean
    m2 = np.square(d).mean()
    if m2 == 0:
        return {"mean": mean, "variance": 0.0, "skewness": np.nan, "kurtosis": np.nan}
    return {
        "mean": mean,
        "variance": m2,
        "skewness": (d**3).mean() / m2**1.5,
        "kurtosis": np.square(np.square(d)).mean() / m2**2 - 3,
    }


def exact_errors(x: Tensor) -> dict[str, float]:
    """Largest error over the channels: of the mean over σ, of the variance relative, of the others absolute."""
    recorder = ActivationRecorder([x.shape[1]], mode="exact")
    recorder.receive("", 0, x, 1)
    found = recorder.summaries()[0].moments
    errors = dict.fromkeys(("mean", "variance", "skewness", "kurtosis"), 0.0)
    for channel in range(x.shape[1]):
        column = x.select(1, channel).reshape(-1).double().numpy()
        truth = moments(column[np.isfinite(column)])
        spread = truth["variance"] or 1.0
        for name, scale in (("mean", spread**0.5), ("variance", spread), ("skewness", 1.0), ("kurtosis", 1.0)):
            value = float(found.mean[channel] if name == "mean" else getattr(found, name)()[channel])
            if not (np.isnan(truth[name]) and np.isnan(value)):
                errors[name] = max(errors[name], abs(value - truth[name]) / scale)
    return errors


def sampled_scores(x: Tensor, elements: int) -> dict[str, tuple[float, float]]:
    """Root mean square and largest of error over stated standard error, over samples at other positions each time."""
    recorder = ActivationRecorder([x.shape[1]], max_elements=elements)
    whole = x.double().numpy()
    whole = whole[np.isfinite(whole)]
    whole.sort()
    truth = moments(whole)
    percentiles = dict(zip(("p15", "p50", "p85"), np.percentile(whole, (15, 50, 85)), strict=True))
    scores: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        recorder.receive("", 0, x, 1)
        summary = recorder.summaries()[0]
        recorder.reset()
        found, stated = summary.percentiles((15, 50, 85)), summary.percentile_errors((15, 50, 85))
        values = dict(zip(percentiles, found, strict=True))
        pairs = {
            "mean": (summary.mean - truth["mean"], summary.mean_error()),
            "variance": (summary.variance - truth["variance"], summary.variance_error()),
        }
        for (name, true), value, error in zip(percentiles.items(), found, stated, strict=True):
            pairs[name] = (value - true, error)
        for name, (error, bound) in pairs.items():
            if name[0] == "p" and not bound:
                # Elements share a few levels: the error is judged in rank, as that of a random sample.
                share, root = int(name[1:]) / 100, np.sqrt(summary.sampled)
                low, high = (np.searchsorted(whole, values[name], side=side) / whole.size for side in ("left", "right"))
                error, bound = max(low - share, share - high, 0), np.sqrt(share * (1 - share)) / root
            scores.setdefault(name, []).append(error / bound)
    return {name: (float(np.sqrt(np.square(z).mean())), float(np.abs(z).max())) for name, z in scores.items()}


def digits_mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for width in (64, 100, 100):
        layers += [nn.Linear(width, 100), nn.Sigmoid()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(100, 10))


def digits_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 10),
    )  # fmt: skip


def rank_errors(make: Callable[[], nn.Module], mode: str, steps: int = 40, batch: int = 256) -> tuple[float, float]:
    """Mean and largest rank error of p15, p50 and p85 over the steps of a training run and its layers."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: dict[str, np.ndarray] = {}
    errors = []

    def keep(layer: str, index: int, value: Tensor, channel_dim: int) -> None:
        seen[layer] = np.sort(value.detach().double().numpy().ravel())

    sites = plan_insertion(model, (x[:4],)).sites
    with record_activations(model, (x[:4],), mode=mode) as record, tap_preactivations(model, sites, keep):
        for _ in range(steps):
            index = torch.randint(len(x), (batch,))
            record.reset()
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for layer, summary in record.summaries().items():
                for percent, value in zip((15, 50, 85), summary.percentiles((15, 50, 85)), strict=True):
                    low, high = (np.searchsorted(seen[layer], value, side=side) for side in ("left", "right"))
                    wanted = percent / 100 * len(seen[layer])
                    errors.append(max(low - wanted, wanted - high, 0) / len(seen[layer]))
    return float(np.mean(errors)), float(np.max(errors))


def main(parts: list[str]) -> None:
    if "moments" in parts:
        print("| exact mode | mean / σ | variance, relative | skewness | kurtosis |\n| --- | --- | --- | --- | --- |")
        for name, make in CASES.items():
            print(
                f"| {name} | " + " | ".join(f"{error:.0e}" for error in exact_errors(make()).values()) + " |",
                flush=True,
            )
    if "sampled" in parts:
        names = ("mean", "variance", "p15", "p50", "p85")
        print("| sampled mode | " + " | ".join(names) + " |\n| --- | " + "--- | " * len(names))
        for name, make in CASES.items():
            if name not in ("1e8 elements", "constant channels"):
                scores = sampled_scores(make(), 1024)
                cells = (f"{scores[one][0]:.2f} ({scores[one][1]:.1f})" for one in names)
                print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if "percentiles" in parts:
        print("| rank error | sampled: mean | largest | exact: mean | largest |\n| --- | --- | --- | --- | --- |")
        for name, make in (("digits MLP, 3 × 100", digits_mlp), ("digits CNN, 3 convolutions", digits_cnn)):
            cells = [f"{error:.4f}" for mode in ("sampled", "exact") for error in rank_errors(make, mode)]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["moments", "sampled", "percentiles"])
