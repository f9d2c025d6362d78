import math

import pandas as pd

from bn_lightning.probes.measurements import MeasurementTable


def test_rows_keep_their_order_types_and_nan():
    table = MeasurementTable()
    table.add(0, "", {"effective_beta": 2.0})
    table.add(5, "net.0", {"gradient_shift": math.nan, "gradient_shift_dead": 1})
    frame = table.frame()
    assert frame.columns.tolist() == ["step", "layer", "quantity", "value"]
    assert frame["step"].tolist() == [0, 5, 5]
    assert frame["value"].isna().tolist() == [False, True, False]
    assert MeasurementTable().frame().dtypes["value"] == "float64"


def test_a_resumed_run_keeps_what_came_before_it(tmp_path):
    for steps in ((0, 5, 10), (10, 15)):
        table = MeasurementTable()
        for step in steps:
            table.add(step, "", {"x": math.nan if step == 0 else step + len(steps)})
        table.write_csv([tmp_path / "run"], "shift.csv")
    read = pd.read_csv(tmp_path / "run" / "shift.csv", keep_default_na=False, na_values={"value": [""]})
    assert read["step"].tolist() == [0, 5, 10, 15]
    assert math.isnan(read["value"][0])
    assert read["value"].tolist()[1:] == [8, 12, 17]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["shift.csv"]


def test_a_resumed_run_that_measured_nothing_leaves_the_file_as_it_is(tmp_path):
    first = MeasurementTable()
    first.add(0, "", {"x": 1.0})
    first.write_csv([tmp_path], "shift.csv")
    written = (tmp_path / "shift.csv").read_text()
    MeasurementTable().write_csv([tmp_path], "shift.csv")
    assert (tmp_path / "shift.csv").read_text() == written
    MeasurementTable().write_csv([tmp_path], "other.csv")
    assert (tmp_path / "other.csv").read_text() == "step,layer,quantity,value\n"
