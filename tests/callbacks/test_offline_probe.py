import pytest
import torch
from monitored import quiet_trainer
from probed import DeepNet, data
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from bn_lightning.callbacks.offline_probe import ProbeAtTrainStart


def look_with(tmp_path, look, module=None, loader=None, **options):
    callback = ProbeAtTrainStart(look, probe_size=25)
    module = module or DeepNet()
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=1, **options)
    trainer.fit(module, data(shuffle=True) if loader is None else loader)
    return callback, module, trainer


def test_the_module_is_seen_with_training_batches_and_not_trained(tmp_path):
    module = DeepNet()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seen = []

    def look(given, batches, example):
        assert given is module
        given.training_step(batches[0], 0)  # its log is muted: no loop is there to take the value
        seen.append((batches, example.entry))

    random = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        callback, _, trainer = look_with(tmp_path, look, module)
        random.append(torch.equal(torch.get_rng_state(), state))
        assert callback.called
        assert trainer.global_step == 0
    assert [len(batch[0]) for batch in seen[0][0]] == [10, 10, 10]
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=0, atol=0)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {f"net.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_what_the_function_raises_ends_the_fit(tmp_path):
    def look(module, batches, example):
        raise ValueError("no such luck")

    with pytest.raises(ValueError, match="no such luck"):
        look_with(tmp_path, look)


def test_ctrl_c_is_kept_for_the_caller(tmp_path):
    def look(module, batches, example):
        raise KeyboardInterrupt

    callback, _, trainer = look_with(tmp_path, look)
    assert isinstance(callback.interrupt, KeyboardInterrupt)
    assert trainer.global_step == 0


def test_without_a_training_batch_it_is_not_called(tmp_path):
    empty = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(0, 6), torch.zeros(0)), batch_size=2)
    with pytest.warns(UserWarning, match="across ranks is zero"):
        callback, _, _ = look_with(tmp_path, print, loader=empty)
    assert not callback.called


def test_data_that_cannot_be_read_twice_are_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="an iterator"):
        look_with(tmp_path, print, loader=iter(list(data())), limit_train_batches=2)
