import pytest
from inserted import BuiltInConfigureModel, BuiltInSetup, Lit, trainer

from bn_lightning.callbacks._built import OnceBuilt


class Both(BuiltInConfigureModel):
    def setup(self, stage):
        self.stage = stage


@pytest.mark.parametrize(
    ("kind", "hooks"),
    [
        (Lit, []),
        (BuiltInSetup, ["setup"]),
        (BuiltInConfigureModel, ["configure_model"]),
        (Both, ["setup", "configure_model"]),
    ],
)
def test_it_acts_at_the_end_of_the_last_hook_that_builds_layers(tmp_path, kind, hooks):
    module, acted = kind(), []
    waiting = OnceBuilt(trainer(tmp_path), module, lambda: acted.append(getattr(module, "net", None)))
    waiting.arm()
    assert waiting.waited == bool(hooks)
    for name in hooks:
        assert not acted
        getattr(module, name)(*["fit"] if name == "setup" else [])
        assert name not in vars(module)
    assert acted == [module.net]
    assert module.net is not None


def test_a_hook_put_on_the_instance_is_called_and_put_back(tmp_path):
    module, called = Lit(), []
    mine = module.configure_model = lambda: called.append("mine")
    waiting = OnceBuilt(trainer(tmp_path), module, lambda: called.append("then"))
    waiting.arm()
    module.configure_model()
    assert called == ["mine", "then"]
    assert vars(module)["configure_model"] is mine


def test_giving_up_leaves_the_module_as_it_was(tmp_path):
    module, acted = Both(), []
    waiting = OnceBuilt(trainer(tmp_path), module, lambda: acted.append(1))
    waiting.arm()
    waiting.restore()
    waiting.restore()
    module.setup("fit")
    module.configure_model()
    assert not acted
    assert not {"setup", "configure_model"} & set(vars(module))
