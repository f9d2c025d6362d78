"""Ensembles of checkpoints against an average by hand, the ways batches and outputs can look, and what is refused."""

import hashlib
from functools import partial

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from classifier import Classifier, Images, train_members
from scipy.special import softmax
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, default_collate

from bn_lightning.analysis.crops import ten_crops
from bn_lightning.analysis.ensemble_checkpoints import ensemble_checkpoints
from bn_lightning.analysis.ensemble_console import errors_by_member
from bn_lightning.analysis.results import read_results
from bn_lightning.errors import NonFiniteError, PlanMismatchError, RunFolderError, UnknownNameError
from bn_lightning.surgery.checkpoint import load_from_checkpoint


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return train_members(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train_members(tmp_path_factory.mktemp("plain"), 2, norms=False)


def run(checkpoints, tmp_path, **options):
    given = {"model": Classifier, "data": Images, "out": tmp_path / "ensemble.csv"}
    return ensemble_checkpoints(checkpoints, **{**given, **options})


def by_hand(checkpoints, loader, views=lambda x: [x], module=Classifier):
    """In NumPy, one sample at a time."""
    probabilities = []
    for path in checkpoints:
        net = load_from_checkpoint(module, path, weights_only=True).eval()
        with torch.no_grad():
            rows = [
                np.mean([softmax(net(view).double().numpy(), axis=1)[0] for view in views(x[None])], axis=0)
                for x, _ in loader.dataset
            ]
        probabilities.append(np.stack(rows))
    return np.stack(probabilities), loader.dataset.tensors[1].numpy()


def errors(probabilities, labels, k):
    ranked = np.argsort(-probabilities, axis=1)[:, :k]
    return np.mean([label not in row for label, row in zip(labels, ranked, strict=True)])


@pytest.mark.parametrize("views", ["whole", "10-crop"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_an_ensemble_is_the_mean_of_probabilities_over_members_and_views(members, tmp_path, split, views):
    done = run(members, tmp_path, split=split, views=views)
    loader = Images().test_dataloader() if split == "test" else Images().val_dataloader()
    alone, labels = by_hand(members, loader, ten_crops if views == "10-crop" else lambda x: [x])
    # Networks run in float32, on batches here and on single samples there.
    assert_close(done.probabilities, torch.from_numpy(alone.mean(0)), rtol=1.3e-6, atol=1e-6)
    assert done.target.tolist() == labels.tolist()
    assert (done.members, done.views) == (("member_0", "member_1", "member_2"), 10 if views == "10-crop" else 1)
    rows = done.table.set_index(["arm", "quantity"])["value"]
    for k in (1, 5):
        for name, probabilities in zip(done.members, alone, strict=True):
            assert rows[name, f"top_{k}_error"] == errors(probabilities, labels, k)
        assert rows["ensemble", f"top_{k}_error"] == errors(alone.mean(0), labels, k)
    assert set(done.table["step"]) == {10}
    assert read_results(done.out).equals(done.table)


def test_nothing_is_changed_but_the_table(members, tmp_path):
    folder = members[0].parent
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(members, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble.csv"]


def test_the_table_is_beside_the_first_checkpoint_by_default(tmp_path):
    (path,) = train_members(tmp_path, 1)
    done = ensemble_checkpoints([path], model=Classifier, data=Images)
    assert done.out == tmp_path / "ensemble.csv"
    assert done.out.is_file()
    table = errors_by_member(done.table)
    assert table["member"].tolist() == ["member_0", "ensemble"]
    assert table["top 1 error"].nunique() == 1


def test_modules_are_in_evaluation_mode_and_without_gradients(members, tmp_path):
    seen = []

    class Watching(Classifier):
        def forward(self, x):
            norms = [part for part in self.modules() if isinstance(part, nn.BatchNorm1d)]
            seen.append((self.training, norms[0].training, torch.is_grad_enabled()))
            return super().forward(x)

    run(members, tmp_path, model=Watching)
    assert set(seen) == {(False, False, False)}


def test_a_users_own_views_see_the_inputs_and_their_mean_is_taken(members, tmp_path):
    def views(x):
        yield x
        yield x + 0.5

    done = run(members, tmp_path, views=views)
    alone, _ = by_hand(members, Images().test_dataloader(), views)
    assert_close(done.probabilities, torch.from_numpy(alone.mean(0)), rtol=1.3e-6, atol=1e-6)
    assert done.views == 2


class Shown(Classifier):
    """Returns what it is told to."""

    def forward(self, x):
        logits = self.net(x)
        return {
            "softmax": logits.softmax(1),
            "log": logits.log_softmax(1),
            "tuple": (x, logits),
            "mapping": {"logits": logits, "loss": x.sum()},
        }[self.shown]


@pytest.mark.parametrize(
    ("shown", "options"),
    [
        ("softmax", {}),
        ("softmax", {"outputs": "probabilities"}),
        ("log", {}),
        ("tuple", {"output": 1}),
        ("tuple", {"output": -1}),
        ("mapping", {"output": "logits"}),
        ("tuple", {"forward": lambda module, x: module.net(x)}),
    ],
)
def test_what_forward_returns(plain, tmp_path, shown, options):
    kind = type("Returning", (Shown,), {"shown": shown})
    expected = run(plain, tmp_path).probabilities
    # Probabilities are rounded to float32 by the module.
    assert_close(run(plain, tmp_path, model=kind, **options).probabilities, expected, rtol=1.3e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shown", "options", "error", "words"),
    [
        ("tuple", {}, TypeError, "returned tuple.*name the one to use"),
        ("tuple", {"output": 2}, ValueError, r"The output of .*member_0.ckpt has no output 2: it is a tuple of 2"),
        ("mapping", {"output": "logit"}, ValueError, "a mapping with the keys logits, loss"),
        ("softmax", {"output": 0}, ValueError, "has no output 0: it is a Tensor"),
        ("log", {"outputs": "probabilities"}, ValueError, "are to be probabilities, but their rows are not"),
    ],
)
def test_what_forward_returns_and_cannot_be_used(plain, tmp_path, shown, options, error, words):
    kind = type("Returning", (Shown,), {"shown": shown})
    with pytest.raises(error, match=words):
        run(plain, tmp_path, model=kind, **options)


def test_outputs_that_are_probabilities_in_the_first_batch_only(plain, tmp_path):
    class Changing(Classifier):
        def forward(self, x):
            return self.net(x).softmax(1) if len(x) == 8 else self.net(x)

    with pytest.raises(ValueError, match="are to be probabilities, but their rows are not"):
        run(plain, tmp_path, model=Changing)


class Laid(Images):
    layout = staticmethod(lambda x, y: {"image": x, "label": y})

    def test_dataloader(self):
        def collate(samples):
            return self.layout(*default_collate(samples))

        return DataLoader(self.images(23), batch_size=8, collate_fn=collate)


def laid(layout):
    return type("LaidOut", (Laid,), {"layout": staticmethod(layout)})


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (lambda x, y: {"image": x, "label": y}, {"inputs": "image", "target": "label"}),
        (lambda x, y: (torch.zeros(1), y, x), {"inputs": 2}),
        (lambda x, y: ({"image": x}, y), {"forward": lambda module, inputs: module(inputs["image"])}),
    ],
)
def test_batches_of_another_layout(plain, tmp_path, layout, options):
    expected = run(plain, tmp_path).probabilities
    assert_close(run(plain, tmp_path, data=laid(layout), **options).probabilities, expected)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            lambda x, y: {"image": x, "label": y},
            r"has no inputs 0: it is a mapping with the keys image, label.*--inputs",
        ),
        (lambda x, y: [x], r"has no target 1: it is a list of 1.*--target"),
        (lambda x, y: x, "has no inputs 0: it is a Tensor"),
        (lambda x, y: (x, y.tolist()), "target of a batch is a tensor of classes, but 1 holds a list"),
        (lambda x, y: (x, y.float()), "as a whole number"),
        (lambda x, y: (x, y + 3), "reach from 3 to 8, those of the outputs from 0 to 5"),
    ],
)
def test_batches_without_what_is_asked_for(plain, tmp_path, layout, words):
    with pytest.raises(ValueError, match=words):
        run(plain, tmp_path, data=laid(layout))


def test_a_loader_that_shuffles_gives_every_member_the_same_samples(members, tmp_path):
    done = run(members, tmp_path, data=partial(Images, shuffle=True))
    alone, labels = by_hand(members, Images().test_dataloader())
    assert sorted(done.target.tolist()) == sorted(labels)
    assert done.target.tolist() != labels.tolist()
    found = done.table.query("arm == 'ensemble' and quantity == 'top_1_error'")["value"].item()
    assert found == errors(alone.mean(0), labels, 1)


def test_a_loader_with_an_order_of_its_own_is_refused(members, tmp_path):
    class Own(Images):
        def test_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            return DataLoader(self.images(23), batch_size=8, shuffle=True, generator=generator)

    with pytest.raises(ValueError, match=r"member_1.ckpt was given other samples.*shuffle=False"):
        run(members, tmp_path, data=Own)


def test_members_of_few_classes_have_no_top_5_error(tmp_path):
    class Three(Classifier):
        def __init__(self):
            super().__init__(classes=3)

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0], batch[1] % 3), batch_idx)

    data = laid(lambda x, y: (x, y % 3))
    done = run(train_members(tmp_path, 2, module=Three), tmp_path, model=Three, data=data)
    assert set(done.table["quantity"]) == {"top_1_error"}


def test_members_that_disagree_in_classes_are_named(plain, tmp_path):
    classes = iter((6, 7))

    class Wider(Classifier):
        def __init__(self, classes):
            super().__init__()
            self.classes = classes

        def forward(self, x):
            return nn.functional.pad(self.net(x), (0, self.classes - 6))

    with pytest.raises(ValueError, match=r"member_1.ckpt has 7 and .*member_0.ckpt has 6"):
        run(plain, tmp_path, model=lambda: Wider(next(classes)))


def test_a_member_that_is_nan_is_named_and_no_table_written(plain, tmp_path):
    broken = torch.load(plain[1], weights_only=True)
    broken["state_dict"]["net.3.bias"][0] = float("nan")
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(
        NonFiniteError, match=r"Member .*broken.ckpt cannot be averaged: in batch 0, 8 of 8 rows.*Leave"
    ):
        run([plain[0], tmp_path / "broken.ckpt"], tmp_path)
    assert not (tmp_path / "ensemble.csv").exists()


def test_members_of_one_name_are_called_by_their_paths(plain, tmp_path):
    for path in plain:
        (tmp_path / path.stem).mkdir()
        (tmp_path / path.stem / "last.ckpt").write_bytes(path.read_bytes())
    sources = [tmp_path / path.stem / "last.ckpt" for path in plain]
    assert run(sources, tmp_path).members == tuple(map(str, sources))
    single = tmp_path / "ensemble.ckpt"
    single.write_bytes(plain[0].read_bytes())
    assert run([single], tmp_path).members == (str(single),)


def test_data_are_set_up_once_and_for_their_split(plain, tmp_path):
    stages = []

    class Staged(Images):
        def prepare_data(self):
            stages.append("prepare")

        def setup(self, stage):
            assert self.trainer.world_size == 1
            stages.append(stage)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 1, batch[1]

    done = run(plain, tmp_path, data=Staged)
    assert stages == ["prepare", "test"]
    moved, _ = by_hand(plain, Images().test_dataloader(), lambda x: [x + 1])
    assert_close(done.probabilities, torch.from_numpy(moved.mean(0)), rtol=1.3e-6, atol=1e-6)
    run(plain, tmp_path, data=Staged, split="val")
    assert stages[2:] == ["prepare", "validate"]


def test_loaders_of_any_kind(plain, tmp_path):
    class Iterable(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Images().images(23))

    expected = run(plain, tmp_path).probabilities
    batches = list(Images().test_dataloader())
    loaders = [[DataLoader(Iterable(), batch_size=8)], {"only": batches}, DataLoader(Iterable(), batch_size=8)]
    for loader in loaders:
        kind = type("Other", (Images,), {"test_dataloader": lambda self, loader=loader: loader})
        assert_close(run(plain, tmp_path, data=kind).probabilities, expected)


def test_data_that_hold_no_such_loader(plain, tmp_path):
    class Untested(pl.LightningDataModule):
        val_dataloader = Images.val_dataloader
        images, classes, shuffle = Images.images, 6, False

    with pytest.raises(ValueError, match=r"Untested has no test_dataloader.*name the other split: val"):
        run(plain, tmp_path, data=Untested)
    assert run(plain, tmp_path, data=Untested, split="val").target.shape == (31,)
    two = type("Two", (Images,), {"test_dataloader": lambda self: [self.val_dataloader()] * 2})
    with pytest.raises(ValueError, match=r"Two\.test_dataloader gives 2 loaders"):
        run(plain, tmp_path, data=two)
    empty = type("Empty", (Images,), {"test_dataloader": lambda self: DataLoader([])})
    with pytest.raises(ValueError, match=r"nothing to evaluate .*member_0.ckpt on: the loader holds no batch"):
        run(plain, tmp_path, data=empty)
    with pytest.raises(TypeError, match="made a DataLoader"):
        run(plain, tmp_path, data=partial(DataLoader, [1]))


def test_the_other_name_of_lightning(tmp_path):
    class Other(lightning.pytorch.LightningModule):
        __init__, forward = Classifier.__init__, Classifier.forward

    class Data(lightning.pytorch.LightningDataModule):
        images, classes, shuffle = Images.images, 6, False
        test_dataloader = Images.test_dataloader

    plain = train_members(tmp_path, 2, norms=False)
    # The body of Classifier's __init__ calls super() of that class.
    Other.__init__ = lambda self: (
        lightning.pytorch.LightningModule.__init__(self),
        setattr(self, "net", Classifier().net),
    )[0]
    expected = run(plain, tmp_path).probabilities
    assert_close(run(plain, tmp_path, model=Other, data=Data).probabilities, expected)


def test_checkpoints_and_options_that_cannot_be_used(plain, tmp_path):
    for nothing in ([], "a.ckpt"):
        with pytest.raises(ValueError, match="made of a list of checkpoints, of one at least"):
            run(nothing, tmp_path)
    with pytest.raises(ValueError, match=r"member_0.ckpt is named twice"):
        run([plain[0], plain[0].parent / "." / plain[0].name], tmp_path)
    with pytest.raises(RunFolderError, match="There is no checkpoint"):
        run([plain[0], tmp_path / "absent.ckpt"], tmp_path)
    with pytest.raises(PlanMismatchError, match="not a checkpoint of Classifier with these arguments"):
        run(plain, tmp_path, model=partial(Classifier, width=4))
    with pytest.raises(TypeError, match="made a Linear"):
        run(plain, tmp_path, model=partial(nn.Linear, 1, 1))
    with pytest.raises(UnknownNameError, match=r"no split 'tests'\. Did you mean 'test'"):
        run(plain, tmp_path, split="tests")
    with pytest.raises(UnknownNameError, match=r"no set of views 'center'\. Did you mean 'centre'"):
        run(plain, tmp_path, views="center")
    with pytest.raises(ValueError, match="nothing to average: no member, or no view"):
        run(plain, tmp_path, views=lambda x: [])


def test_ctrl_c_is_a_keyboard_interrupt_again(plain, tmp_path):
    def interrupted(module, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plain, tmp_path, forward=interrupted)
    assert list(tmp_path.iterdir()) == []
