"""What TensorBoard's page draws of a finished run, in a real browser."""

import pytest
import pytorch_lightning as pl
import torch
from browser_page import open_page
from monitored import SmallNet, quiet_trainer, small_data
from tensorboard_server import tensorboard

from bn_lightning.callbacks.monitor import ActivationMonitor

# Curves of a chart `c` that have data and a place on the page: SVG paths of many points.
LINES = "deep('path', c.shadowRoot).filter(p => seen(p) && (p.getAttribute('d') || '').length > 60)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    torch.manual_seed(0)
    logger = pl.loggers.TensorBoardLogger(folder, name="", version="run")
    monitor = ActivationMonitor(every_n_steps=2, mode="exact")
    quiet_trainer(folder, callbacks=[monitor], logger=logger, max_steps=12).fit(SmallNet(), small_data())
    with tensorboard(folder, runs={"run"}) as ask, open_page() as page:

        def at(tab):
            page.open("about:blank")
            page.open(f"{ask.address}/#{tab}")
            return page

        yield at


def test_custom_scalars_draw_the_whole_network_and_every_layer(page):
    tab = page("custom_scalars")
    # Variance, mean, saturated and dead share of the two layers together, then a band for each of the two.
    for sort, charts in (("multi-line", 4), ("margin", 2)):
        cards = f"deep('tf-custom-scalar-{sort}-chart-card')"
        assert tab.wait_for(f"{cards}.length") == charts
        assert tab.wait_for(f"{cards}.filter(c => {LINES}.length > 1).length == {charts}")


@pytest.mark.parametrize(
    ("tab", "chart"), [("distributions", "vz-distribution-chart"), ("histograms", "vz-histogram-timeseries")]
)
def test_distributions_are_drawn(page, tab, chart):
    opened = page(tab)
    assert opened.wait_for(f"deep('{chart}').filter(seen).length") >= 2
    assert opened.wait_for(f"deep('{chart}').filter(c => {LINES}.length > 3).length >= 2")


def test_images_are_drawn(page):
    opened = page("images")
    loaded = "deep('img').filter(i => seen(i) && i.complete && i.naturalWidth >= 600).length"
    assert opened.wait_for(f"{loaded} >= 6 ? {loaded} : 0") >= 6
