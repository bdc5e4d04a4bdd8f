"""What a client or a load balancer asks about the server: its models, whether it lives, whether it is ready."""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter

from serve.http.face import Face, ServedModel
from serve.protocol import UnavailableError

_READ = ["GET", "HEAD"]  # load balancers request only the headers


class ModelRoutes:
    """The routes about the server."""

    def __init__(self, face: Face) -> None:
        self._face = face

    def add_to(self, keyed: APIRouter, open_to_all: APIRouter) -> None:
        """Adds the routes to the router of requests that need a key, and to that of the others."""
        keyed.add_api_route("/v1/models", self.models, methods=_READ)
        keyed.add_api_route("/v1/models/{model_id:path}", self.model, methods=_READ)
        open_to_all.add_api_route("/health", self.health, methods=_READ)
        open_to_all.add_api_route("/ready", self.ready, methods=_READ)

    async def health(self) -> dict[str, str]:
        """200 while this process answers."""
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """200 if a model can answer. One that cannot, such as a bundle on trial, must not take the others with it."""
        for model in self._face.models():
            with suppress(UnavailableError):
                await model.backend.check()
                return {"status": "ready"}
        raise UnavailableError("no model can answer: try again")

    async def models(self) -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [await _entry(model, self._face.created) for model in self._face.models()]}

    async def model(self, model_id: str) -> dict[str, Any]:
        """A model by name, with its image size, sampler defaults and limits."""
        return await _entry(self._face.model(model_id), self._face.created)


async def _entry(model: ServedModel, created: int) -> dict[str, Any]:
    info = await model.backend.describe()
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "blip3o",
        "size": f"{info.image_size}x{info.image_size}",
        "num_inference_steps": info.num_inference_steps,
        "guidance_scale": info.guidance_scale,
        "solver": info.solver,
        "precision": info.precision,
        "bundle_sha256": info.bundle_sha256,
        "abilities": sorted(info.abilities),
        "max_images_in_chat": info.max_images_in_chat,
        "prompt_tokens_limit": info.prompt_tokens_limit,
    }
