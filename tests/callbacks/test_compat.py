"""One callback base for both Lightning namespaces."""

import subprocess
import sys
import textwrap

import lightning.pytorch
import pytest
import pytorch_lightning

from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, misconfiguration, namespace_of

SPACES = [pytorch_lightning, lightning.pytorch]


def trainer_of(space, tmp_path, *callbacks):
    return space.Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
def test_a_callback_runs_in_a_trainer_of_either(space, tmp_path):
    class Seen(CallbackBase):
        hooks = ()

        def on_train_start(self, trainer, pl_module):
            self.hooks = (type(trainer), type(pl_module))

    seen = Seen()
    assert isinstance(seen, space.Callback)
    boring = __import__(f"{space.__name__}.demos.boring_classes", fromlist=["BoringModel"]).BoringModel
    trainer_of(space, tmp_path, seen).fit(boring())
    assert seen.hooks == (space.Trainer, boring)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
def test_namespace_and_exception_are_the_trainers(space, tmp_path):
    class Own(space.Trainer):
        pass

    for kind in (space.Trainer, Own):
        trainer = kind(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
        assert namespace_of(trainer) is space
        error = misconfiguration(trainer, "asked for the moon")
        assert isinstance(error, space.utilities.exceptions.MisconfigurationException)
        assert str(error) == "asked for the moon"
        assert isinstance(trainer, Trainer)
    assert isinstance(space.LightningModule(), LightningModule)


def run(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


HIDE = """
    import sys
    class Hide:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {hidden}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
    sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize(
    ("hidden", "left"), [("lightning", "pytorch_lightning"), ("pytorch_lightning", "lightning.pytorch")]
)
def test_one_of_the_two_is_enough(hidden, left):
    done = run(
        HIDE.format(hidden={hidden})
        + """
    from bn_lightning.callbacks import _compat
    print([space.__name__ for space in _compat.NAMESPACES])
    """
    )
    assert done.stdout.strip() == str([left]), done.stderr


def test_none_of_the_two_says_what_to_install():
    done = run(HIDE.format(hidden={"lightning", "pytorch_lightning"}) + "\n    import bn_lightning.callbacks._compat\n")
    assert "bn_lightning.callbacks needs Lightning: pip install pytorch-lightning, or lightning." in done.stderr


def test_a_broken_installation_is_not_hidden():
    done = run(HIDE.format(hidden={"torchmetrics"}) + "\n    import bn_lightning.callbacks._compat\n")
    assert "No module named 'torchmetrics'" in done.stderr


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Blocker())
import bn_lightning.callbacks as callbacks
print([base.__module__.split(".")[0] for base in callbacks.BatchNormInsertion.__mro__ if base.__name__ == "Callback"])
"""


def import_without(*blocked: str) -> subprocess.CompletedProcess:
    code = BLOCKED.format(blocked=blocked)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("blocked", "bases"),
    [
        (("pytorch_lightning",), "['lightning']"),
        (("lightning",), "['pytorch_lightning']"),
        ((), "['pytorch_lightning', 'lightning']"),
    ],
    ids=["lightning alone", "pytorch_lightning alone", "both"],
)
def test_the_base_is_that_of_every_installed_namespace(blocked, bases):
    done = import_without(*blocked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == bases


def test_without_lightning_the_callbacks_say_what_to_install():
    done = import_without("pytorch_lightning", "lightning")
    assert "bn_lightning.callbacks needs Lightning: pip install pytorch-lightning, or lightning." in done.stderr
