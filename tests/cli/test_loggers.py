"""Runs under every logger that the command line is tried with."""

import json
import os
import struct
import time

import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

import cli
from steer_lightning.callbacks import HyperparameterLog, LastCheckpoint, SteerCallback
from tests.cli.running import QUIET, callbacks, of, toy_config, write
from tests.helpers.models import ForeignModel, seeded, tiny_loader, tiny_trainer

MONITOR, PLOT = of("NFEMonitor"), of("FlowPlot", every_n_checks=1)


def fit_and_test(arguments=(), finish=lambda: None, **trainer):
    """Train, and test the weights by a second command; gives the Trainers of both."""
    trainer = {"max_epochs": 1, "callbacks": [MONITOR], "log_every_n_steps": 1, **trainer}
    config = write(toy_config(steer=None, trainer=trainer))
    fitted = cli.main(["fit", "--config", config, *arguments, *QUIET])
    (last,) = (c.path for c in callbacks(fitted, LastCheckpoint))
    finish()
    again = ["test", "--config", config, "--ckpt_path", str(last), *arguments, *QUIET]
    return fitted.trainer, cli.main(again).trainer


def test_tensorboards_table_sorts_by_settings_and_metrics(folder):
    for arguments in (["--steer.b=0.25"], [], ["--steer.b=0.125", "--penalties.acceleration=0.5"]):
        fit_and_test(arguments)
    rows = table(folder / "logs", sort_by="steer/b")
    assert [settings["steer/b"] for settings, _ in rows] == [0.0, 0.125, 0.25]
    assert [settings.get("penalties/acceleration") for settings, _ in rows] == [None, 0.5, None]
    for settings, metrics in rows:
        assert settings["solvers/flow.solver"].startswith("AdaptiveSolver(method='dopri5', rtol=")
        assert settings["flow/class_path"] == "steer_lightning.nn.CNF"
        assert (settings["data/name"], settings["data/seed"]) == ("8gaussians", 0.0)
        assert {"test/nll", "test/nfe_forward", "val/nll", "train/seconds"} <= set(metrics)
        assert "hp_metric" not in metrics
    found = [metrics["test/nll"] for _, metrics in table(folder / "logs", sort_by="test/nll")]
    assert found == sorted(found)
    assert len(set(found)) == 3


def test_hyperparameters_are_plain(tmp_path):
    trainer = tiny_trainer(
        SteerCallback(0.5, vector_fields=["func"]), HyperparameterLog(), logger=CSVLogger(tmp_path)
    )
    trainer.fit(seeded(ForeignModel), tiny_loader())
    (file,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(file.read_text())["steer"]["vector_fields"] == ["func"]


def table(logs, sort_by):
    """Rows of TensorBoard's table of hyperparameters, settings and metrics, as it sorts them."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logs)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logs))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    content = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, content, context.hparams_from_data_provider(request, "", 0)
    )
    columns = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    columns += [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    for column in columns:
        column.include_in_result = True
        if sort_by in (column.hparam, column.metric.tag):
            column.order = api_pb2.ORDER_ASC
    asked = api_pb2.ListSessionGroupsRequest(
        col_params=columns, slice_size=10, allowed_statuses=[api_pb2.STATUS_UNKNOWN]
    )
    groups = Handler(request, context, "", asked).run().session_groups
    return [
        (
            {name: v.number_value or v.string_value or 0.0 for name, v in group.hparams.items()},
            {value.name.tag: value.value for value in group.metric_values},
        )
        for group in groups
    ]


def test_weights_and_biases_has_scalars_and_plots_of_fit_and_test(folder, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = of("WandbLogger", project="toy", offline=True, save_dir="logs")
    more = {"finish": wandb.finish, "logger": logger, "callbacks": [MONITOR, PLOT]}
    fit, test = fit_and_test(["--steer.b=0.25"], **more)
    wandb.finish()
    assert test.logger.version == fit.logger.version
    files = os.listdir(folder / "logs" / "toy" / fit.logger.version)
    assert {*files} == {"checkpoints", "config.yaml", "config_test.yaml", "plots"}
    config, history = {}, {}
    for path in (folder / "logs" / "wandb").glob(f"offline-run-*/run-{fit.logger.version}.wandb"):
        for record in finished_records(path):
            for update in (*record.run.config.update, *record.config.update):
                config[update.key] = json.loads(update.value_json)
            for item in record.history.item:
                history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert config["steer"]["b"] == 0.25
    assert config["solvers"]["flow.solver"].startswith("AdaptiveSolver(method='dopri5'")
    assert {"test/nll", "test/nfe_forward", "val/nll", "train/seconds"} <= set(history)
    assert history["flow_val/_type"] == history["flow_test/_type"] == "images/separated"


def finished_records(path):
    """All records of a run: W&B's process writes the last ones after `finish` has returned."""
    deadline = time.monotonic() + 60.0
    while True:
        records = list(wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, f"{path} has no last record"
        time.sleep(0.1)


def wandb_records(path):
    """What W&B keeps of a run offline: protocol buffers in a log of blocks, LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):
            return
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield Record.FromString(record)
            record = b""


def test_mlflow_has_scalars_and_plots_of_fit_and_test(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = of("MLFlowLogger", save_dir="logs")
    fit, test = fit_and_test(["--steer.b=0.25"], logger=logger, callbacks=[MONITOR, PLOT])
    assert test.logger.run_id == fit.logger.run_id
    run = folder / "logs" / fit.logger.experiment_id / fit.logger.run_id
    assert {"checkpoints", "config.yaml", "config_test.yaml", "plots"} <= set(os.listdir(run))
    saved = fit.logger.experiment.get_run(fit.logger.run_id).data
    assert saved.params["steer/b"] == "0.25"
    assert saved.params["solvers/flow.solver"].startswith("AdaptiveSolver(method='dopri5'")
    assert {"test/nll", "test/nfe_forward", "val/nll", "train/seconds"} <= set(saved.metrics)
    plots = {p.parent.name for p in (run / "artifacts" / "plots").rglob("*.png")}
    assert plots == {"flow_val", "flow_test"}
