"""Marks in checkpoints: on while wanted, gone afterwards, in any order of leaving."""

from torch import nn

from bn_lightning.callbacks._mark import mark_checkpoints, unmark_checkpoints


class Module(nn.Module):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["own"] = True


def saved(module):
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def marker(name):
    return lambda checkpoint: checkpoint.update({name: True})


def test_marks_and_the_modules_own_hook_both_run():
    module = Module()
    mark_checkpoints(module, marker("a"), owner="a")
    mark_checkpoints(module, marker("b"), owner="b")
    mark_checkpoints(module, marker("b"), owner="b")
    assert saved(module) == {"own": True, "a": True, "b": True}
    unmark_checkpoints(module, owner="b")
    unmark_checkpoints(module, owner="a")
    assert "on_save_checkpoint" not in vars(module)
    assert saved(module) == {"own": True}


def test_the_first_may_leave_first():
    module = Module()
    mark_checkpoints(module, marker("a"), owner="a")
    mark_checkpoints(module, marker("b"), owner="b")
    unmark_checkpoints(module, owner="a")
    assert saved(module) == {"own": True, "b": True}


def test_a_patch_that_was_there_before_stays():
    module = Module()
    module.on_save_checkpoint = marker("patched")
    patched = module.on_save_checkpoint
    mark_checkpoints(module, marker("a"), owner="a")
    assert saved(module) == {"patched": True, "a": True}
    unmark_checkpoints(module, owner="a")
    assert module.on_save_checkpoint is patched


def test_unmarking_what_was_never_marked():
    module = Module()
    unmark_checkpoints(module, owner="a")
    module.on_save_checkpoint = patched = marker("patched")
    unmark_checkpoints(module, owner="a")
    assert module.on_save_checkpoint is patched
