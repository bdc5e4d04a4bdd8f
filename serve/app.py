"""The application for Ray Serve's own command line: `serve run serve.app:app bundle=s3://bucket/bundles/demo`.

In a Serve config or a RayService manifest: `import_path: serve.app:app` with `args: {bundle: …}`; see `ServeConfig`.
"""

from typing import TYPE_CHECKING

from serve.config import ServeConfig
from serve.deployments import build_app

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: ServeConfig) -> "Application":
    """Builds the application; Ray Serve makes `args` from its key=value pairs."""
    return build_app(args)
