"""The applications for Ray Serve's own command line and config files.

`serve run serve.app:app bundle=s3://bucket/bundles/demo` serves one bundle. For bundles that come and go behind one
address, a config has an application with `import_path: serve.app:face`, and one with `serve.app:model` per bundle; see
serve/config/ and docs/serving.md.
"""

from typing import TYPE_CHECKING

from serve.config.options import FaceConfig, ServeConfig
from serve.deployments.applications import build_app, build_face, build_model

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: ServeConfig) -> "Application":
    """A bundle with its face; Ray Serve makes `args` from its key=value pairs."""
    return build_app(args)


def model(args: ServeConfig) -> "Application":
    """The replicas of a bundle, without a face."""
    return build_model(args)


def face(args: FaceConfig) -> "Application":
    """The face alone."""
    return build_face(args)
