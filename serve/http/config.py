"""How the HTTP API behaves, as data: who may ask, what a request may cost, what leaves the server."""

import re
from typing import Literal

from pydantic import Field, field_validator

from blip3o.config.base import Frozen

MIB = 2**20
_ORIGIN = re.compile(r"https?://[^/\s]+")


class HttpConfig(Frozen):
    """The field `http` of `ServeConfig`."""

    auth: Literal["keys", "off"] = Field(
        default="keys",
        description="keys: requests need an API key from $BLIP3O_API_KEYS or keys_file; if there are no keys, only "
        "this machine is served. off: everyone is served",
    )
    keys_file: str = Field(
        default="", description="YAML file or URI of API keys: each a name with its key, or with sha256 and limits"
    )
    max_body_bytes: int = Field(default=32 * MIB, ge=1024, description="largest body of a request, bytes")
    max_bodies_bytes: int = Field(
        default=512 * MIB,
        ge=1024,
        description="most bytes of request bodies that one process of the API holds at a time",
    )
    max_image_bytes: int = Field(default=10 * MIB, ge=1, description="largest uploaded image, bytes")
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, description="most pixels of an uploaded image, checked before decoding"
    )
    decoding_images: int = Field(
        default=2,
        ge=1,
        description="uploaded images that a process of the API decodes at a time; each takes up to 24 bytes per pixel",
    )
    read_timeout_s: float = Field(default=30, gt=0, description="seconds in which a body must arrive")
    write_timeout_s: float = Field(
        default=60, gt=0, description="seconds in which a client must read a part of a reply"
    )
    resize_images: bool = Field(
        default=False, description="allow a `size` other than the model's own, by resampling its images"
    )
    url_store: str = Field(
        default="", description="URI of a folder for images that are requested as links; in memory if omitted"
    )
    url_memory_bytes: int = Field(default=256 * MIB, ge=0, description="most bytes of such images in memory")
    url_seconds: float = Field(default=3600, gt=0, description="seconds for which such a link is valid")
    public_url: str = Field(
        default="",
        description="address in these links, as in https://images.example.com; that of the request if omitted",
    )
    fetch_hosts: tuple[str, ...] = Field(
        default=(), description="hosts from which https images in messages are fetched; none if omitted"
    )
    fetch_timeout_s: float = Field(default=10, gt=0, description="seconds in which such an image must arrive")
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins of other web pages that may call the API from a browser"
    )
    content_filter: str = Field(
        default="", description="MODULE:FUNCTION that makes a `ContentFilter`; see docs/serving.md"
    )
    access_log: bool = Field(default=False, description="write a line of JSON for each request to stderr")

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_send_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is no origin: write scheme and host, as in https://app.example.com")
        return tuple(origin.lower() for origin in origins)
