"""Two people whose apps encrypt, each in an office: matrix-js-sdk's tests of tests/clients/js, with a link that can be cut."""
import asyncio
import os
import pathlib
import shutil
import signal
import tempfile
import unittest

from aiohttp import web
from office import Organisation

APPS = pathlib.Path(__file__).parent.parent / "clients" / "js"
NAMES = ["north.example", "south.example"]
LIMIT = 600  # seconds for all of it


class Encryption(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)  # unittest's default is ten times slower
        self.work = tempfile.mkdtemp(prefix="kontor-encryption-")
        self.offices = Organisation(self.work, NAMES)
        await self.offices.__aenter__()
        self.addAsyncCleanup(self.close)
        self.control = await self.commands()

    async def close(self):
        await self.offices.__aexit__()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.work)

    async def commands(self):
        """Answers where the apps' tests ask for what happens to the offices."""

        async def cut(_):
            for link in self.offices.between(*NAMES):
                link.cut()
            return web.Response()

        async def mend(_):
            for link in self.offices.between(*NAMES):
                link.mend()
            return web.Response()

        async def restart(_):
            for node in self.offices.nodes.values():
                node.kill()
            await asyncio.gather(*(node.start() for node in self.offices.nodes.values()))
            return web.Response()

        app = web.Application()
        app.add_routes([web.post("/cut", cut), web.post("/mend", mend), web.post("/restart", restart)])
        runner = web.AppRunner(app)
        await runner.setup()
        self.addAsyncCleanup(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return "http://{}:{}".format(*runner.addresses[0])

    async def test_two_offices(self):
        north, south = (self.offices.nodes[name] for name in NAMES)
        commands = {f"{name.upper()}_CMD": f"curl -sf -X POST {self.control}/{name}" for name in ("cut", "mend", "restart")}
        servers = {"HOMESERVER_URL": north.url, "OTHER_HOMESERVER_URL": south.url, "WAIT_LIMIT_MS": "60000"}
        apps = await asyncio.create_subprocess_exec(
            "node", "--test", "--test-force-exit", "--test-reporter=./reporter.js", "encryption.test.js",
            cwd=APPS, env=os.environ | commands | servers,
        )
        try:
            self.assertEqual(await asyncio.wait_for(apps.wait(), LIMIT), 0, "what failed stands above")
        finally:
            if apps.returncode is None:
                apps.kill()
                await apps.wait()
        for node in (north, south):
            node.kill(signal.SIGTERM)
            node.check()
