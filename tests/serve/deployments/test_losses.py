"""Processes that are lost or only just start: what a client gets for it is always something that it tries again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray.exceptions
from starlette.testclient import TestClient

from serve.deployments.losses import BUSY, LOST, UNAVAILABLE
from serve.deployments.proxy import WaitForRoutes

DEFECTS = {  # a request that ends in one of them would do so again: 500, and a line in the log
    *("ActorAlreadyExistsError", "ActorHandleNotFoundError", "AsyncioActorExit", "AuthenticationError"),
    *("CrossLanguageError", "GetTimeoutError", "ObjectRefStreamEndOfStreamError", "PlasmaObjectNotAvailable"),
    *("OufOfBandObjectRefSerializationException", "RayCgraphCapacityExceeded", "RayChannelError"),
    *("RayChannelTimeoutError", "RayDirectTransportError", "RaySystemError", "RayTaskError", "RuntimeEnvSetupError"),
    *("StreamingGeneratorReplayInconsistentError", "UnserializableException", "UserCodeException"),
}


def test_every_kind_of_ray_error_is_a_loss_or_a_defect():
    kinds = {
        each
        for each in vars(ray.exceptions).values()
        if isinstance(each, type) and issubclass(each, ray.exceptions.RayError)
    } - {ray.exceptions.RayError}
    for kind in kinds:
        groups = [group for group in (BUSY, UNAVAILABLE, LOST) if issubclass(kind, group)]
        assert len(groups) == (kind.__name__ not in DEFECTS), kind
    assert {kind.__name__ for kind in kinds} > DEFECTS
    for kind in ("ObjectLostError", "OwnerDiedError", "ActorDiedError", "NodeDiedError", "ObjectFetchTimedOutError"):
        assert issubclass(getattr(ray.exceptions, kind), LOST)


@pytest.fixture
def proxy():
    """Ray Serve's own proxy, which knows no routes."""
    from ray.serve._private.proxy import HTTPProxy
    from ray.serve._private.proxy_router import ProxyRouter

    router = ProxyRouter(lambda deployment, info: None)
    return HTTPProxy("node", "127.0.0.1", is_head=True, self_actor_name="proxy", proxy_router=router)


def test_a_proxy_without_routes_says_503_not_404_and_holds_requests_until_it_has_some(proxy):
    from ray.serve._private.common import DeploymentID, EndpointInfo

    path = "/v1/models"
    assert TestClient(proxy).get(path).status_code == 404  # what Serve does by itself
    held = WaitForRoutes(proxy, patience_s=0)
    client = TestClient(held)
    refused = client.get(path)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/-/healthz").status_code == 503

    asked = threading.Event()

    async def watched(scope, receive, send):
        asked.set()
        await proxy(scope, receive, send)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(TestClient(WaitForRoutes(watched, patience_s=60)).get, path)
        asked.wait()
        proxy.proxy_router.update_routes({DeploymentID("d", "a"): EndpointInfo(route="/elsewhere")})
        # The proxy has routes, and none of them is this one: its own answer.
        assert waiting.result().status_code == client.get(path).status_code == 404
