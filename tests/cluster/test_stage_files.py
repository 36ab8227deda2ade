import json

from hpc_hipgen.cluster.stage_files import failures, stage_logs


def test_logs_hold_no_markers(run):
    assert stage_logs(run, "report") == run.path("logs", "report")
    assert json.loads(json.dumps(failures(run, "report"))) == []
