import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

from bn_lightning.figure_text import plain_text


@pytest.mark.parametrize("text", ["costs $5", "$x_$y$", r"$\frac$", "no sign", 3])
def test_text_is_shown_as_it_is(text):
    figure = Figure()
    shown = figure.text(0, 0, plain_text(text))
    figure.draw_without_rendering()  # an invalid formula would be an error
    assert not is_math_text(shown.get_text())
    assert shown.get_text().replace(r"\$", "$") == str(text)
