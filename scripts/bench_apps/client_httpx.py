"""The client of the bench for httpx.

Usage: see client_driver.py
"""

from __future__ import annotations

import httpx
from client_driver import DOWNLOAD, PONG, UPLOAD, Job, drive, expect, run

HEADERS = {"Content-Type": "application/octet-stream"}


async def main(job: Job) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=job.workers)
    async with httpx.AsyncClient(limits=limits, timeout=None) as client:

        async def get() -> None:
            response = await client.get(job.ping)
            expect(response.status_code, response.content, PONG)

        async def post() -> None:
            response = await client.post(job.upload, content=UPLOAD, headers=HEADERS)
            expect(response.status_code, response.content, PONG)

        async def download() -> None:
            size = 0
            async with client.stream("GET", job.download) as response:
                async for chunk in response.aiter_bytes():
                    size += len(chunk)
            expect(response.status_code, size, DOWNLOAD)

        await drive(job, get=get, post=post, download=download)


run(main)
