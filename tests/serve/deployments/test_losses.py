"""Processes that are lost or only just start: what a client gets for it is always something that it tries again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from serve.deployments.proxy import WaitForRoutes


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
