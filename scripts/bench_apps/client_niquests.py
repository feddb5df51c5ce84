"""The client of the bench for niquests.

Usage: see client_driver.py
"""

from __future__ import annotations

import niquests
from client_driver import DOWNLOAD, PONG, UPLOAD, Job, drive, expect, run

HEADERS = {"Content-Type": "application/octet-stream"}


async def main(job: Job) -> None:
    async with niquests.AsyncSession(pool_maxsize=max(job.workers, 10)) as session:

        async def get() -> None:
            response = await session.get(job.ping)
            expect(response.status_code, response.content, PONG)

        async def post() -> None:
            response = await session.post(job.upload, data=UPLOAD, headers=HEADERS)
            expect(response.status_code, response.content, PONG)

        async def download() -> None:
            size = 0
            response = await session.get(job.download, stream=True)
            async for chunk in await response.iter_content(1 << 18):
                size += len(chunk)
            expect(response.status_code, size, DOWNLOAD)

        await drive(job, get=get, post=post, download=download)


run(main)
