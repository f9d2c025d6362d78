import math
import re

import lightning.pytorch
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from monitored import SmallNet, quiet_trainer, small_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard_server import tensorboard

from bn_lightning.callbacks._tensorboard import is_tensorboard, layer_tags, log_folders
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import NoEffectWarning

LAYERS = ("00.net.0", "01.net.3")
IMAGES = {
    *(f"preactivation_heatmap/{name}" for name in ("std", "mean", "saturated", "dead", "skewness", "kurtosis")),
    *("preactivation_depth/std", "preactivation_percentiles/00", "preactivation_ridges/00"),
    "preactivation_unit2/01.net.3",
}
QUANTITIES = ("mean", "var", "p15", "p50", "p85", "saturated", "dead")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with loggers of both Lightning packages and a CSV logger."""
    folder = tmp_path_factory.mktemp("logs")
    torch.manual_seed(0)
    loggers = [
        pl.loggers.TensorBoardLogger(folder / "tensorboard", name="", version="one"),
        lightning.pytorch.loggers.TensorBoardLogger(folder / "other", name="", version="two"),
        pl.loggers.CSVLogger(folder / "csv", name="", version="three"),
    ]
    monitor = ActivationMonitor(every_n_steps=5, units={"net.3": [2]}, probe=torch.randn(30, 6))
    quiet_trainer(folder, callbacks=[monitor], logger=loggers, max_steps=12).fit(SmallNet(), small_data())
    return folder, monitor.table()


@pytest.mark.parametrize("logger", ["tensorboard/one", "other/two"])
def test_event_files_hold_every_value_at_its_step(run, logger):
    folder, table = run
    events = EventAccumulator(str(folder / logger)).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("preactivation")}
    wanted = {f"preactivation_{quantity}/{layer}" for quantity in QUANTITIES for layer in LAYERS}
    assert tags == wanted | {f"preactivation_unit2_p{p}/01.net.3" for p in (15, 50, 85)}
    for tag in tags:
        quantity, _, layer = tag.partition("/")
        rows = table[(table["quantity"] == quantity) & (table["layer"] == layer[3:])]
        points = events.Scalars(tag)
        assert [point.step for point in points] == rows["step"].tolist()
        # Event files hold float32.
        assert [point.value for point in points] == pytest.approx(rows["value"].tolist(), rel=1e-6)


def test_the_typical_unit_has_one_tag_in_every_run_and_its_number_in_the_table(tmp_path):
    seen = []
    for seed in range(3):
        torch.manual_seed(seed)
        logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version=str(seed))
        monitor = ActivationMonitor(every_n_steps=5, units="typical", probe=torch.randn(30, 6), figures=False)
        quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=6).fit(SmallNet(), small_data())
        events = EventAccumulator(str(tmp_path / str(seed))).Reload()
        assert {tag for tag in events.Tags()["scalars"] if "typical" in tag or "unit" in tag} == {
            f"preactivation_typical_p{p}/01.net.3" for p in (15, 50, 85)
        }
        table = monitor.table()
        rows = table[table["quantity"].str.fullmatch(r"preactivation_unit\d+_p50")]
        points = events.Scalars("preactivation_typical_p50/01.net.3")
        assert [point.value for point in points] == pytest.approx(rows["value"].tolist(), rel=1e-6)
        seen += rows["quantity"].unique().tolist()
    assert len(set(seen)) > 1


def test_figures_are_sharp_images(run):
    folder, _ = run
    events = EventAccumulator(str(folder / "tensorboard/one")).Reload()
    assert set(events.Tags()["images"]) == IMAGES
    for tag in IMAGES:
        (image,) = events.Images(tag)
        assert image.step == 12
        assert image.width >= 600
        assert image.encoded_image_string.startswith(b"\x89PNG")


def test_the_table_lies_in_each_loggers_folder(run):
    folder, table = run
    for logger in ("tensorboard/one", "other/two", "csv/three"):
        pd.testing.assert_frame_equal(pd.read_csv(folder / logger / "activations.csv"), table, check_dtype=False)
        assert not list((folder / logger).glob(".activations*"))


def test_other_loggers_get_the_scalars(run):
    folder, table = run
    metrics = pd.read_csv(folder / "csv/three/metrics.csv").set_index("step")
    found = metrics["preactivation_p50/01.net.3"].dropna()
    rows = table[(table["quantity"] == "preactivation_p50") & (table["layer"] == "net.3")]
    assert found.index.tolist() == rows["step"].tolist() == [0, 5, 10]
    assert found.tolist() == pytest.approx(rows["value"].tolist())


@pytest.fixture(scope="module")
def server(run):
    """A TensorBoard server on the run's folder; a function that asks it."""
    folder, _ = run
    with tensorboard(folder / "tensorboard", runs={"one"}) as ask:
        yield ask


def test_a_server_answers_with_the_scalars(run, server):
    _, table = run
    tags = server("plugin/scalars/tags")["one"]
    assert {f"preactivation_{quantity}/{layer}" for quantity in QUANTITIES for layer in LAYERS} <= set(tags)
    points = server("plugin/scalars/scalars", run="one", tag="preactivation_mean/00.net.0")
    rows = table[(table["quantity"] == "preactivation_mean") & (table["layer"] == "net.0")]
    assert [(step, pytest.approx(value, rel=1e-6)) for _, step, value in points] == list(
        zip(rows["step"], rows["value"], strict=True)
    )


def test_a_server_answers_with_one_margin_chart_a_layer(server):
    layout = server("plugin/custom_scalars/layout")
    network, layers, units = layout["category"]
    assert network["title"] == "pre-activations, the whole network"
    # The page shows margin charts in reverse order, so the first layer comes last.
    assert [chart["title"] for chart in layers["chart"]] == list(reversed(LAYERS))
    assert [chart["title"] for chart in units["chart"]] == ["01.net.3 unit 2"]
    scalars = server("plugin/scalars/tags")["one"]
    for chart in layers["chart"] + units["chart"]:
        (series,) = chart["margin"]["series"]
        assert [re.search(r"_(p\d+)/", series[key])[1] for key in ("value", "lower", "upper")] == ["p50", "p15", "p85"]
        assert set(series.values()) <= set(scalars)


def test_a_server_answers_with_the_figures(server):
    tags = server("plugin/images/tags")["one"]
    assert set(tags) == IMAGES


@pytest.mark.parametrize(("percentiles", "expected"), [((50,), None), ((5, 25, 75, 95), ["p75", "p5", "p95"])])
def test_margin_charts_take_the_middle_and_the_outer_percentiles(tmp_path, percentiles, expected):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitor = ActivationMonitor(percentiles=percentiles, figures=False)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1).fit(SmallNet(), small_data())
    events = EventAccumulator(logger.log_dir).Reload()
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    charts = {category.title: category.chart for category in layout.category}
    if expected is None:
        assert list(charts) == ["pre-activations, the whole network"]
        return
    series = charts["pre-activation percentiles"][0].margin.series[0]
    names = [tag.split("/")[0].removeprefix("preactivation_") for tag in (series.value, series.lower, series.upper)]
    assert names == expected


def test_two_monitors_share_one_layout(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitors = [
        ActivationMonitor(every_n_steps=2, include="net.0", layers="net.5"),
        ActivationMonitor(every_n_steps=2, include="net.3", mode="exact"),
    ]
    quiet_trainer(tmp_path, callbacks=monitors, logger=logger, max_steps=4).fit(SmallNet(), small_data())
    events = EventAccumulator(logger.log_dir).Reload()
    config = events.Tensors("custom_scalars__config__")[-1]
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    charts = {category.title: [chart.title for chart in category.chart] for category in layout.category}
    assert charts == {
        "pre-activation percentiles": ["00.net.0"],
        "output percentiles": ["00.net.5"],
        "pre-activation percentiles (2)": ["00.net.3"],
    }
    scalars = set(events.Tags()["scalars"])
    for category in layout.category:
        for chart in category.chart:
            (series,) = chart.margin.series
            assert {series.value, series.lower, series.upper} <= scalars
    assert {"preactivation_heatmap/std", "2.preactivation_heatmap/std"} <= set(events.Tags()["images"])
    assert {"preactivation/00.net.0", "output/00.net.5", "2.preactivation/00.net.3"} <= set(events.Tags()["histograms"])


def test_figures_and_histograms_can_be_left_out(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitor = ActivationMonitor(figures=False, histograms=False)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1).fit(SmallNet(), small_data())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert tags["images"] == tags["histograms"] == []


def test_a_histogram_says_what_the_table_says(run):
    folder, table = run
    events = EventAccumulator(str(folder / "tensorboard/one"), size_guidance={"histograms": 0}).Reload()
    for layer, tag, channels in (("net.0", LAYERS[0], 8), ("net.3", LAYERS[1], 5)):
        found = events.Histograms(f"preactivation/{tag}")
        assert [event.step for event in found] == [0, 5, 10]
        rows = table[table["layer"] == layer].pivot_table(index="step", columns="quantity", values="value")
        for event in found:
            histogram, row = event.histogram_value, rows.loc[event.step]
            assert histogram.num == 10 * channels == pytest.approx(sum(histogram.bucket))
            mean = histogram.sum / histogram.num
            assert mean == pytest.approx(row["preactivation_mean"])
            assert histogram.sum_squares / histogram.num - mean**2 == pytest.approx(row["preactivation_var"])
            ends = histogram.min, histogram.max
            assert ends == pytest.approx((row["preactivation_min"], row["preactivation_max"]))


def test_a_server_answers_with_distributions_of_numbers(server):
    for tag in LAYERS:
        for _, step, points in server("plugin/distributions/distributions", run="one", tag=f"preactivation/{tag}"):
            values = [value for _, value in points]
            assert values == sorted(values), step
            assert all(map(math.isfinite, values))


class Nameless(pl.loggers.logger.Logger):
    name, version = "nameless", "0"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("the tracking server is gone")


class Inexperienced(pl.loggers.TensorBoardLogger):
    experiment = None

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        pass

    def save(self):
        pass

    def finalize(self, status):
        pass


class OnAnotherRank(Inexperienced):
    @property
    def experiment(self):
        return pl.loggers.logger.DummyExperiment()


def test_a_logger_that_fails_or_has_no_experiment_is_left_out_with_one_warning(tmp_path):
    good = pl.loggers.CSVLogger(tmp_path / "csv", name="", version="run")
    idle = [OnAnotherRank(tmp_path / "rank"), pl.loggers.logger.DummyLogger()]
    bad = [Nameless(), Inexperienced(tmp_path / "tb"), *idle]
    module, monitor = SmallNet(), ActivationMonitor(every_n_steps=1)
    module.log = lambda *args: None
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=[*bad, good], max_steps=3)
    with pytest.warns(NoEffectWarning) as warned:
        trainer.fit(module, small_data())
    told = [str(one.message) for one in warned if issubclass(one.category, NoEffectWarning)]
    assert [text.split(" takes none")[0] for text in told] == ["Nameless", "Inexperienced"]
    assert "ConnectionError: the tracking server is gone" in told[0]
    assert "its experiment is None" in told[1]
    assert monitor.table()["step"].unique().tolist() == [0, 1, 2]
    assert pd.read_csv(tmp_path / "csv/run/metrics.csv")["preactivation_mean/00.net.0"].count() == 3


def test_a_folder_that_cannot_be_written_is_told_before_and_after_and_nothing_else_is_lost(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")

    class Elsewhere(pl.loggers.logger.DummyLogger):
        log_dir = str(tmp_path / "taken" / "run")

    good = pl.loggers.CSVLogger(tmp_path / "csv", name="", version="run")
    monitor = ActivationMonitor(every_n_steps=1)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=[Elsewhere(), good], max_steps=2)
    with pytest.warns(UserWarning, match="cannot write activations.csv") as warned:
        trainer.fit(SmallNet(), small_data())
    told = [str(one.message) for one in warned if "cannot write" in str(one.message)]
    assert "taken is not a folder" in told[0]
    assert len(told) == 2
    written = pd.read_csv(tmp_path / "csv/run/activations.csv")
    pd.testing.assert_frame_equal(written, monitor.table(), check_dtype=False)


def test_a_diverged_run_is_drawn_as_far_as_it_is_finite(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    module = SmallNet()
    with torch.no_grad():
        module.net[0].bias.fill_(torch.nan)
    with pytest.warns(UserWarning, match="Non-finite"):
        quiet_trainer(tmp_path, callbacks=[ActivationMonitor()], logger=logger, max_steps=2).fit(module, small_data())
    assert EventAccumulator(logger.log_dir).Reload().Tags()["images"] == []


def test_tags_sort_as_the_forward_runs():
    labels = [f"block{number}" for number in range(120)]
    assert sorted(layer_tags(labels)) == list(layer_tags(labels))
    assert layer_tags(["a"]) == ("00.a",)


def test_loggers_are_told_apart(tmp_path):
    assert is_tensorboard(pl.loggers.TensorBoardLogger(tmp_path))
    assert is_tensorboard(lightning.pytorch.loggers.TensorBoardLogger(tmp_path))
    assert not is_tensorboard(pl.loggers.CSVLogger(tmp_path))
    csv = pl.loggers.CSVLogger(tmp_path, name="", version="x")
    assert log_folders([csv, csv, object()]) == [tmp_path / "x"]


# The resume is from within an epoch on purpose.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_run_keeps_the_rows_of_the_run_before(tmp_path):
    def run(max_steps, path=None):
        logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
        monitor = ActivationMonitor(every_n_steps=1, figures=False)
        trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=max_steps)
        trainer.fit(SmallNet(), small_data(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return pd.read_csv(tmp_path / "run" / "activations.csv")

    first = run(4)
    both = run(7, tmp_path / "end.ckpt")
    pd.testing.assert_frame_equal(both.iloc[: len(first)], first)
    assert both["step"].unique().tolist() == list(range(7))


def test_figures_survive_odd_names_and_values(tmp_path):
    class Odd(SmallNet):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.ModuleDict({"a$^$": self.net})

        def forward(self, x):
            return self.net["a$^$"](x)

    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitor = ActivationMonitor(every_n_steps=1, units={"*": [0]}, probe=torch.full((8, 6), float("nan")))
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=3).fit(Odd(), small_data())
    images = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    assert "preactivation_heatmap/std" in images
    assert not any("unit" in tag for tag in images)
