"""`blip3o bench-serve --url URL`: how fast a running server answers, under a load that you describe."""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from blip3o import settings, storage
from blip3o.errors import ConfigError
from jobs.commands.remote import API_KEY
from jobs.common import parameters_of, with_parameters
from jobs.loadtest.options import LoadOptions, workload


@with_parameters(parameters_of(LoadOptions))
def bench_serve(
    url: Annotated[str, typer.Option(metavar="URL", help="The server, as in http://127.0.0.1:8000.")],
    **values: Any,  # noqa: ANN401 - the fields of `LoadOptions`
) -> None:
    """Put load on a running server and measure: latency, throughput, time to the first part, time per stage.

    Requests are of several kinds, each one --work KIND,NAME=VALUE,… The kinds are image and chat.

    The names are n, steps, guidance, partials (previews, streamed), tokens (of a reply) and share.

    For example, every fifth request a chat, and four images of 50 steps now and then:

    --work image,share=7 --work image,n=4,steps=50,share=1 --work chat,share=2

    Latency counts from when a request was due. Ctrl-C ends it early with what there is. BLIP3O_API_KEY is the key.
    """
    from jobs.loadtest.report import as_page, as_text
    from jobs.loadtest.session import Session

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url} is no address of a server: write it as in http://127.0.0.1:8000")
    options = LoadOptions(**values)
    session = Session(
        url=url.rstrip("/").removesuffix("/v1"), key=settings.get(API_KEY), options=options, workload=workload(options)
    )
    began = datetime.now(UTC).isoformat(timespec="seconds")
    interrupted = False
    try:
        asyncio.run(session.run())
    except KeyboardInterrupt:
        interrupted = True
    result = {"url": session.url, "began": began, "options": asdict(options), **session.result(interrupted=interrupted)}
    print(as_text(result))
    outcomes = session.load.outcomes
    if options.json_file:
        rows = {**result, "outcomes": [outcome.row() for outcome in outcomes]}
        storage.write_bytes(options.json_file, json.dumps(rows, indent=1).encode())
    if options.html_file:
        storage.write_bytes(options.html_file, as_page(result, outcomes).encode())
    if interrupted:
        raise KeyboardInterrupt
