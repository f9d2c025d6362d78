import base64
import io
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bn_lightning.analysis.plots import saving


def figure(points=2):
    drawn = Figure(figsize=(3, 2))
    drawn.add_subplot().plot(np.arange(points), np.random.default_rng(0).normal(size=points), marker="o", label="a < b")
    return drawn


def test_the_png_has_twice_the_screens_pixels():
    assert Image.open(io.BytesIO(saving.figure_png(figure()))).size == (600, 400)


def test_the_svg_is_xml_with_outlines_for_letters_and_comes_out_the_same_twice():
    svg = saving.figure_svg(figure())
    assert svg == saving.figure_svg(figure())
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert "path" in tags
    assert not tags & {"text", "image", "script"}


def test_a_page_gets_the_svg_itself():
    kind, _, content = saving.figure_data_uri(figure()).partition(";base64,")
    assert kind == "data:image/svg+xml"
    assert base64.b64decode(content) == saving.figure_svg(figure())


def test_a_page_gets_pixels_where_the_svg_is_too_large():
    large = figure(points=40_000)
    assert len(saving.figure_svg(large)) > saving.MAX_SVG_BYTES
    kind, _, content = saving.figure_data_uri(large).partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(content) == saving.figure_png(large)
