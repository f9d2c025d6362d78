import math

import pandas as pd
import torch

from bn_lightning.analysis.landscape_points import landscape_points, point_quantities


def long_table(rows):
    return pd.DataFrame(
        [("none", 3, 9, "", name, value) for name, value in rows],
        columns=["arm", "seed", "step", "layer", "quantity", "value"],
    )


def test_points_come_back_with_their_coordinates():
    line = list(point_quantities("end_line", "eval", [(-0.25, 0.5)], torch.tensor([1.0, math.nan])))
    plane = list(point_quantities("start_plane", "train", [(0.1, 0.2), (-1.0, 1.0)], torch.arange(4.0).reshape(2, 2)))
    points = landscape_points(long_table([*line, ("loss", 7.0), ("loss_on_nothing", 1.0), *plane]))
    assert points[["surface", "norm_mode"]].drop_duplicates().to_numpy().tolist() == [
        ["end_line", "eval"],
        ["start_plane", "train"],
    ]
    assert set(points["arm"]) == {"none"}
    assert set(points["seed"]) == {3}
    assert points["first"].tolist() == [-0.25, 0.5, 0.1, 0.1, 0.2, 0.2]
    assert points["second"].tolist()[2:] == [-1.0, 1.0, -1.0, 1.0]
    assert points["second"].isna().tolist() == [True, True, *[False] * 4]
    assert math.isnan(points["loss"][1])
    assert points["loss"].tolist()[2:] == [0.0, 1.0, 2.0, 3.0]


def test_a_table_without_points_gives_none():
    assert landscape_points(long_table([("val_loss", 1.0)])).empty
