"""What one request, one client and all clients together may use: bounds of the HTTP server."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class HttpLimits:
    """Bounds of requests; beyond them a request is refused by one sentence, or its connection is closed.

    Attributes:
        body_bytes: of a JSON body, however it is sent, without the images in it.
        edit_bytes: of a body with images: JSON with them in base64, or a form.
        finetune_bytes: of a form with images to learn from.
        finetune_images: images to learn from.
        upload_bytes: of a PNG whose settings are read.
        all_bodies_bytes: of all bodies that are there at once.
        header_bytes: of a request line with its headers.
        header_seconds: for a request line and its headers to arrive, from the first byte or the connection on.
        body_seconds: for a body to arrive.
        write_seconds: that a client may take nothing of what is sent to it.
        keep_alive_seconds: that a connection may be idle between requests.
        connections: open at once.
        prompts: in a job.
        count: images for each prompt.
        images: of a job.
        prompt_length: characters of a prompt.
        steps: sampling steps of a stage.
        side: pixels of a side of an image.
        upload_pixels: pixels of an image that is sent.
        streams: event streams at once.
        streams_per_client: of one client.
        heartbeat_seconds: between comments on a stream where nothing happens.
        wait_seconds: that `POST /v1/images/generations` waits for its images.
    """

    body_bytes: int = 2**20
    edit_bytes: int = 2**24
    finetune_bytes: int = 2**26
    finetune_images: int = 100
    upload_bytes: int = 2**25
    all_bodies_bytes: int = 2**28
    header_bytes: int = 2**14
    header_seconds: float = 10
    body_seconds: float = 60
    write_seconds: float = 30
    keep_alive_seconds: int = 15
    connections: int = 4096
    prompts: int = 64
    count: int = 64
    images: int = 64
    prompt_length: int = 4000
    steps: int = 1000
    side: int = 4096
    upload_pixels: int = 2**24
    streams: int = 1024
    streams_per_client: int = 32
    heartbeat_seconds: float = 15
    wait_seconds: float = 900
