import pytest
import torch
import yaml
from inserted import Lit, loader, norms_of
from pytorch_lightning.cli import LightningCLI
from torch import nn

from bn_lightning.callbacks import BatchNormInsertion


class Fed(Lit):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader()


class OwnNorm(nn.BatchNorm1d):
    """A norm of the user's, named in YAML."""

    def __init__(self, num_features: int, momentum: float = 0.1) -> None:
        super().__init__(num_features, momentum=momentum)


ALL = {
    "placement": "before",
    "norm": "batch",
    "norm_options": {"momentum": 0.01, "affine": False},
    "site": "affine",
    "include": ["net.*", "torch.nn.Linear"],
    "exclude": ["net.3", "torch.nn.modules.conv.Conv2d"],
    "inputs": True,
    "existing": ["batch", "layer"],
    "bias": "keep",
    "entry": "training_step",
    "num_examples": 3,
    "init": "identity",
    "num_init_batches": 7,
}


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    # Lightning 2.6 calls jsonargparse in a way that newer releases of it deprecate.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["train.py"])


def parsed(config: dict, *arguments: str, run: bool = False) -> LightningCLI:
    return LightningCLI(
        Fed, run=run, args=config if not arguments else list(arguments), seed_everything_default=1,
        **({} if run else {"save_config_callback": None}),
    )  # fmt: skip


def config(folder, options: dict) -> dict:
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": [{"class_path": "bn_lightning.callbacks.BatchNormInsertion", "init_args": options}],
        }
    }


def insertion(cli: LightningCLI) -> BatchNormInsertion:
    (callback,) = (part for part in cli.trainer.callbacks if isinstance(part, BatchNormInsertion))
    return callback


def settings(callback: BatchNormInsertion) -> dict:
    return {name: getattr(callback, name) for name in ALL}


@pytest.mark.parametrize("options", [{}, ALL], ids=["defaults", "all options"])
def test_a_configuration_that_was_saved_and_read_again_gives_the_same_callback(tmp_path, options):
    cli = parsed(config(tmp_path, options))
    saved = cli.parser.dump(cli.config, skip_none=False)
    again = parsed(yaml.safe_load(saved))
    assert settings(insertion(again)) == settings(insertion(cli)) == settings(BatchNormInsertion(**resolved(options)))


def resolved(options: dict) -> dict:
    classes = {"torch.nn.Linear": nn.Linear, "torch.nn.modules.conv.Conv2d": nn.Conv2d}
    return {
        name: [classes.get(part, part) for part in value] if name in ("include", "exclude") else value
        for name, value in options.items()
    }


def test_all_options_in_yaml_are_taken_by_the_callback(tmp_path):
    callback = insertion(parsed(config(tmp_path, ALL)))
    expected = {**ALL, "include": ("net.*", nn.Linear), "exclude": ("net.3", nn.Conv2d), "existing": ("batch", "layer")}
    assert settings(callback) == expected


def test_a_norm_class_in_yaml_is_the_factory_and_survives_a_round_trip(tmp_path):
    norm = {"class_path": f"{OwnNorm.__module__}.OwnNorm", "init_args": {"momentum": 0.25}}
    cli = parsed(config(tmp_path, {"norm": norm}))
    again = parsed(yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)))
    for run in (cli, again):
        run.trainer.fit(run.model)
        assert [(type(layer), layer.momentum) for layer in norms_of(run.model)] == [(OwnNorm, 0.25)] * 2


def test_fit_by_the_command_line_writes_the_configuration_that_runs_again(tmp_path):
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(config(tmp_path, {"norm_options": {"momentum": 0.5}})))
    first = parsed({}, "fit", f"--config={file}", run=True)
    second = parsed(
        {}, "fit", f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'again'}", run=True
    )
    assert [layer.momentum for layer in norms_of(second.model)] == [0.5, 0.5]
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)
