"""The client of the bench for aiohttp.

Usage: see client_driver.py
"""

from __future__ import annotations

import aiohttp
from client_driver import DOWNLOAD, PONG, UPLOAD, Job, drive, expect, run

HEADERS = {"Content-Type": "application/octet-stream"}


async def main(job: Job) -> None:
    # No timeouts, as the others: by default it has one of five minutes for the whole of each request.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:

        async def get() -> None:
            async with session.get(job.ping) as response:
                expect(response.status, await response.read(), PONG)

        async def post() -> None:
            async with session.post(job.upload, data=UPLOAD, headers=HEADERS) as response:
                expect(response.status, await response.read(), PONG)

        async def download() -> None:
            size = 0
            async with session.get(job.download) as response:
                async for chunk in response.content.iter_any():
                    size += len(chunk)
            expect(response.status, size, DOWNLOAD)

        await drive(job, get=get, post=post, download=download)


run(main)
