import subprocess
import sys
import textwrap
from pathlib import Path

import torch

HEADER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import warnings
from pathlib import Path
from inserted import Lit, BuiltInConfigureModel, data, loader, module, norms_of, pl
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.carried import plan_of

folder = Path(sys.argv[2])


def trainer(*callbacks, **options):
    options = {"devices": 2, "strategy": "ddp", "max_epochs": 2, **options}
    return pl.Trainer(accelerator="cpu", logger=False, callbacks=list(callbacks), enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options)


def fit(model, *callbacks, ckpt_path=None, **options):
    one = trainer(*callbacks, **options)
    one.fit(model, loader(), ckpt_path=ckpt_path)
    return one

"""


def in_processes(folder: Path, script: str) -> None:
    """Run a script as the first of the processes that its Trainers start."""
    body = textwrap.indent(textwrap.dedent(script), "    ")
    (folder / "run.py").write_text(f"{HEADER}\nif __name__ == '__main__':\n    torch.set_num_threads(1)\n{body}")
    done = subprocess.run(
        [sys.executable, str(folder / "run.py"), str(Path(__file__).parents[1]), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def saved(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1)]


def without_statistics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if "running" not in name}


def test_two_processes_train_the_same_norms_and_resume_to_the_same_weights(tmp_path):
    script = """
    model = module()
    run = fit(model, BatchNormInsertion())
    torch.save(model.state_dict(), folder / f"whole{run.global_rank}.pt")
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [4, 4]
    half = fit(module(), BatchNormInsertion(), max_epochs=1)
    half.save_checkpoint(folder / "half.ckpt")
    resumed = module(5)
    fit(resumed, BatchNormInsertion(), ckpt_path=folder / "half.ckpt")
    torch.save(resumed.state_dict(), folder / f"resumed{run.global_rank}.pt")
    by_hand = module()
    insert_batch_norm(by_hand, (data()[:8][0],))
    fit(by_hand)
    torch.save(by_hand.state_dict(), folder / f"by_hand{run.global_rank}.pt")
    fresh = module(9)
    (tested,) = trainer(BatchNormInsertion()).test(fresh, loader(), ckpt_path=folder / "half.ckpt", verbose=False)
    assert len(norms_of(fresh)) == 2 and tested["val_loss"] > 0
    """
    in_processes(tmp_path, script)
    whole, resumed, by_hand = (saved(tmp_path, name) for name in ("whole", "resumed", "by_hand"))
    torch.testing.assert_close(without_statistics(whole[0]), without_statistics(whole[1]), rtol=0, atol=0)
    torch.testing.assert_close(resumed[0], whole[0], rtol=0, atol=0)
    torch.testing.assert_close(without_statistics(resumed[1]), without_statistics(whole[1]), rtol=0, atol=0)
    torch.testing.assert_close(by_hand, whole, rtol=0, atol=0)


def test_norms_that_start_as_the_identity_start_equal_in_all_processes(tmp_path):
    script = """
    class Noted(Lit):
        def on_train_start(self):
            torch.save(self.state_dict(), folder / f"start{self.global_rank}.pt")

    fit(module(kind=Noted), BatchNormInsertion(init="identity"), max_epochs=1)
    """
    in_processes(tmp_path, script)
    first, second = saved(tmp_path, "start")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first["net.0.bn_lightning_norm.0.weight"] != 1).all()


def test_sync_batchnorm_on_the_cpu_is_refused_by_torch_and_leaves_the_plan(tmp_path):
    script = """
    model, message = module(), ""
    try:
        fit(model, BatchNormInsertion(), sync_batchnorm=True)
    except ValueError as error:
        message = str(error)
    assert message == "SyncBatchNorm layers only work with GPU modules", message
    assert all(isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) for norm in norms_of(model))
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    assert [site["name"] for site in checkpoint["bn_lightning"]["plan"]["sites"]] == ["net.1", "net.3"]
    """
    in_processes(tmp_path, script)


SHARDED = """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from pytorch_lightning.strategies import ModelParallelStrategy

    class Sharded(Lit):
        insert = False

        def __init__(self):
            super().__init__()
            self.sharded = False

        def configure_model(self):
            if self.sharded:
                return
            if self.insert:
                insert_batch_norm(self.net, (torch.randn(8, 4),))
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
            self.sharded = True

    class InsertedFirst(Sharded):
        insert = True
"""


def test_norms_inserted_before_sharding_train_as_in_whole_replicas(tmp_path):
    script = f"""{SHARDED}
    model = module(kind=InsertedFirst)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    run = fit(model, BatchNormInsertion(), strategy=strategy)
    full = {{name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in model.state_dict().items()}}
    torch.save(full, folder / f"sharded{{run.global_rank}}.pt")
    """
    in_processes(tmp_path, script)
    script = """
    model = module()
    run = fit(model, BatchNormInsertion())
    torch.save(model.state_dict(), folder / f"replica{run.global_rank}.pt")
    """
    in_processes(tmp_path, script)
    sharded, replica = saved(tmp_path, "sharded"), saved(tmp_path, "replica")
    torch.testing.assert_close(without_statistics(sharded[0]), without_statistics(sharded[1]), rtol=0, atol=0)
    torch.testing.assert_close(without_statistics(sharded[0]), without_statistics(replica[0]))


def test_layers_that_were_sharded_first_are_refused(tmp_path):
    script = f"""{SHARDED}
    strategy, message = ModelParallelStrategy(process_group_backend="gloo"), ""
    try:
        fit(module(kind=Sharded), BatchNormInsertion(), strategy=strategy)
    except pl.utilities.exceptions.MisconfigurationException as error:
        message = str(error)
    assert "Sharded shards its layers (net.0.weight …) before norms can be inserted" in message, message
    assert "before fully_shard(self.network)" in message
    """
    in_processes(tmp_path, script)
