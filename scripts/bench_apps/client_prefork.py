"""The client of the bench: prefork's own, as its manual shows it.

Usage: see client_driver.py
"""

from __future__ import annotations

from client_driver import DOWNLOAD, PONG, UPLOAD, Job, drive, expect, run

from prefork import http


async def main(job: Job) -> None:
    async with http.Client() as client:

        async def get() -> None:
            response = await client.get(job.ping)
            expect(response.status, response.body, PONG)

        async def post() -> None:
            response = await client.post(job.upload, "application/octet-stream", UPLOAD)
            expect(response.status, response.body, PONG)

        async def download() -> None:
            size = 0
            async with client.get(job.download) as response:
                async for chunk in response.body:
                    size += len(chunk)
            expect(response.status, size, DOWNLOAD)

        await drive(job, get=get, post=post, download=download)


run(main)
