"""What the gateway finds in Serve: models whose application changes its builder, or is at rest."""

import asyncio
from types import SimpleNamespace

import pytest
from test_bundles import Call, models

from trainyard.serving.discovery import MODEL, SHARED, ServeModels


def test_an_application_may_change_its_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    async def names() -> dict[str, int]:
        return {"mail": 1}

    running = SimpleNamespace(replica_states={"RUNNING": 1})
    mail = SimpleNamespace(deployments={SHARED: running}, status="RUNNING")
    status = SimpleNamespace(applications={"mail": mail})
    monkeypatch.setattr("ray.serve.status", lambda: status)
    shared = SimpleNamespace(deployment_name=SHARED, names=SimpleNamespace(remote=names))
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: shared)
    found = models(lambda *_: Call())
    found._known["mail"].handle.app_name = "mail"
    asyncio.run(found.refresh())
    assert found._known["mail"].handle is shared


def test_a_model_at_rest_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autoscaling may leave no replica; the next request wakes one."""
    deployment = SimpleNamespace(replica_states={}, status="HEALTHY")
    mail = SimpleNamespace(deployments={MODEL: deployment}, status="RUNNING")
    status = SimpleNamespace(applications={"mail": mail})
    monkeypatch.setattr("ray.serve.status", lambda: status)
    found, unknown = models(lambda *_: Call()), ServeModels()
    found._known["mail"].handle.app_name = "mail"
    for one, state, waiting in (
        (found, "HEALTHY", []),
        (found, "UNHEALTHY", ["mail"]),
        (unknown, "HEALTHY", ["mail"]),
    ):
        deployment.status = state
        asyncio.run(one.refresh())
        assert one.waiting_for() == waiting
    assert found.names() == ["mail"]
