import pandas as pd
import pytest
import torch
from classifier import train_members

from bn_lightning.cli import main

OURS = ["--model=classifier.Classifier", "--data=classifier.Images"]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return [str(path) for path in train_members(tmp_path_factory.mktemp("members"))]


def own_views(images):
    return [images, images.flip(-1)]


def from_dictionary(module, inputs):
    return module.net(inputs)


def ensemble(members, tmp_path, *more):
    return main(["ensemble", *members, *OURS, f"--out={tmp_path / 'out.csv'}", *more])


def test_members_and_the_ensemble_on_the_terminal_and_in_a_table(members, tmp_path, capsys):
    assert ensemble(members, tmp_path, "--views=10-crop", "--size=4") == 0
    said = capsys.readouterr().out
    for words in ("23 samples, 6 classes, 10 views of each", "member_2", "ensemble", "top 1 error", "top 5 error"):
        assert words in said
    assert "mean and 95 % t interval of 3" in said
    assert f"Table: {tmp_path / 'out.csv'}" in said
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["arm"].unique().tolist() == ["member_0", "member_1", "member_2", "ensemble"]
    alone = table.query("arm != 'ensemble' and quantity == 'top_1_error'")["value"].mean()
    assert f"top 1 error: members {alone:.4f} [" in said


def test_one_checkpoint_on_the_validation_data_with_views_of_ones_own(members, tmp_path, capsys):
    assert ensemble(members[:1], tmp_path, "--split=val", f"--own-views={__name__}.own_views") == 0
    said = capsys.readouterr().out
    assert "31 samples, 6 classes, 2 views of each" in said
    assert "interval" not in said


def test_few_classes_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("classifier.Classifier.forward", lambda self, x: self.net(x)[:, :4])
    monkeypatch.setattr("classifier.Images.classes", 4)
    paths = [str(path) for path in train_members(tmp_path, 1)]
    assert ensemble(paths, tmp_path) == 0
    said = capsys.readouterr().out
    assert "There is no top-5 error: of 4 classes none is ever outside the first five." in said


def test_keys_and_a_forward_by_import_path(members, tmp_path, capsys):
    arguments = ["--inputs=0", "--target=1", "--outputs=logits", f"--forward={__name__}.from_dictionary"]
    assert ensemble(members, tmp_path, *arguments) == 0
    assert ensemble(members, tmp_path, "--inputs=image") == 2
    assert "has no inputs 'image': it is a list of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--views=12-crop"], "There is no set of views '12-crop'. Did you mean '10-crop'"),
        (["--size=4"], "size=4 (--size) is the side of crops"),
        (["--outputs=probabilities"], "are to be probabilities, but their rows are not"),
    ],
)
def test_bad_usage_is_answered_in_a_line_and_with_status_two(members, tmp_path, capsys, arguments, words):
    assert ensemble(members, tmp_path, *arguments) == 2
    trouble = capsys.readouterr().err
    assert words in trouble
    assert len(trouble.splitlines()) == 1


def test_a_member_that_is_nan_is_bad_usage_by_name(members, tmp_path, capsys):
    broken = torch.load(members[0], weights_only=True)
    broken["state_dict"]["net.3.weight"].fill_(float("nan"))
    torch.save(broken, tmp_path / "broken.ckpt")
    assert ensemble([*members, str(tmp_path / "broken.ckpt")], tmp_path) == 2
    assert "broken.ckpt cannot be averaged" in capsys.readouterr().err


def test_checkpoints_may_come_last_and_one_that_is_not_there_is_named(members, tmp_path, capsys):
    flags = [*OURS, f"--out={tmp_path / 'out.csv'}"]
    assert main(["ensemble", *flags, *members]) == 0
    assert main(["ensemble", *flags, *members, "nowhere.ckpt"]) == 2
    assert "There is no checkpoint nowhere.ckpt" in capsys.readouterr().err


def test_without_checkpoints_or_data_it_is_bad_usage(members, capsys):
    assert main(["ensemble", *OURS]) == 2
    assert "checkpoints" in capsys.readouterr().err
    assert main(["ensemble", *members, OURS[0]]) == 2
    assert "data" in capsys.readouterr().err


def test_help(capsys):
    assert main(["ensemble", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("checkpoints", "--views", "--own-views", "144-crop", "--split"):
        assert words in said
