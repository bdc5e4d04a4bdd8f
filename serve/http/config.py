"""How the HTTP API behaves, as data: who may ask, what a request may cost, what leaves the server."""

from typing import Literal

from pydantic import Field

from blip3o.config.base import Frozen

MIB = 2**20


class HttpConfig(Frozen):
    """The field `http` of `ServeConfig`."""

    auth: Literal["keys", "off"] = Field(
        default="keys",
        description="keys: a request needs an API key, of $BLIP3O_API_KEYS or keys_file; without any key, only "
        "connections to a loopback address are served. off: everybody is served",
    )
    keys_file: str = Field(
        default="", description="YAML file or URI of API keys: each a name with its key, or with sha256 and limits"
    )
    max_body_bytes: int = Field(default=32 * MIB, ge=1024, description="most bytes of a request's body")
    max_bodies_bytes: int = Field(
        default=512 * MIB, ge=1024, description="most bytes of all bodies that one process of the API holds at a time"
    )
    max_image_bytes: int = Field(default=10 * MIB, ge=1, description="most bytes of an image that is sent")
    max_image_pixels: int = Field(default=50_000_000, ge=1, description="most pixels of it, before it is decoded")
    decoding_images: int = Field(
        default=2,
        ge=1,
        description="images that one process of the API decodes at a time; each takes up to 24 bytes a pixel",
    )
    read_timeout_s: float = Field(default=30, gt=0, description="longest time in which a body must arrive, seconds")
    write_timeout_s: float = Field(
        default=60, gt=0, description="longest time in which a client must take a piece of a reply, seconds"
    )
    resize_images: bool = Field(
        default=False, description="whether `size` may differ from the model's own: its images are then resampled"
    )
    url_store: str = Field(
        default="", description="URI of a folder for images that are asked for as url; in the memory if omitted"
    )
    url_memory_bytes: int = Field(default=256 * MIB, ge=0, description="most bytes of such images in the memory")
    url_seconds: float = Field(default=3600, gt=0, description="how long such a link is valid, seconds")
    public_url: str = Field(
        default="", description="address in these links, as in https://images.example.com; the request's if omitted"
    )
    fetch_hosts: tuple[str, ...] = Field(
        default=(), description="hosts whose https images are fetched when a message names them; none if omitted"
    )
    fetch_timeout_s: float = Field(default=10, gt=0, description="longest time for such an image, seconds")
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins of other web pages that may call the API from a browser"
    )
    content_filter: str = Field(
        default="", description="MODULE:FUNCTION that makes a `ContentFilter`; see docs/serving.md"
    )
    access_log: bool = Field(default=False, description="writes a line of JSON for each request to stderr")
