#!/usr/bin/env python3
"""Measures two nodes that federate beside two Synapses that do (on SQLite), all in one run and all durable.

    tests/bench/federation.py HSBENCH SYNAPSE OUT [options of hsbench fed]

HSBENCH is the load generator's program, SYNAPSE the script that starts a Synapse, OUT a new directory for data, logs and
results.json. The node is $CARGO_TARGET_DIR/release/kontor (or KONTOR_BIN). Needs aiohttp (see tests/clients)."""
import asyncio
import os
import pathlib
import subprocess
import sys

if len(sys.argv) < 4:
    sys.exit(__doc__)
hsbench, synapse, out, *options = sys.argv[1:]
target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path.home() / ".cache/kontor/target")
os.environ.setdefault("KONTOR_BIN", f"{target}/release/kontor")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "offices"))
from office import Organisation  # noqa: E402

SYNAPSES = {8111: 8511, 8112: 8512}  # HTTP and TLS ports


async def main():
    work = pathlib.Path(out)
    work.mkdir()
    homes = {port: work / f"synapse-{port}" for port in SYNAPSES}
    log = '[log]\nlevel = "warn"\n'
    try:
        for port, tls in SYNAPSES.items():
            subprocess.run([synapse, str(port), homes[port]], env=os.environ | {"TLS_PORT": str(tls)}, check=True)
        async with Organisation(work, ["north.example", "south.example"], log, direct=True) as offices:
            ours = list(offices.nodes.values())
            command = [hsbench, "fed", f"synapse={','.join(f'http://127.0.0.1:{port}' for port in SYNAPSES)}"]
            command += [f"kontor={','.join(node.url for node in ours)}", "--json", work / "results.json"]
            for side, port, node in zip("ab", SYNAPSES, ours):
                command += ["--pid", f"synapse.{side}:@{homes[port]}/synapse.pid", "--pid", f"kontor.{side}:{node.process.pid}"]
            process = await asyncio.create_subprocess_exec(*map(str, command), *options)
            return await process.wait()
    finally:
        for home in homes.values():
            subprocess.run([synapse, "stop", home])


sys.exit(asyncio.run(main()))
