"""A real Synapse from PyPI, to federate with: certificates checked against the organisation's authority, no limits."""
import os
import pathlib
import signal
import subprocess
import sys

from office import Server, answers, free_port

VERSION = "1.163.2"
VENV = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "kontor/synapse-venv"
NO_LIMIT = "{per_second: 1000000000, burst_count: 1000000000}"
LIMITS = """rc_message rc_registration rc_admin_redaction rc_joins_per_room rc_key_requests rc_3pid_validation
rc_third_party_invite rc_media_create rc_presence.per_user rc_room_creation rc_login.address rc_login.account
rc_login.failed_attempts rc_joins.local rc_joins.remote rc_invites.per_room rc_invites.per_user rc_invites.per_issuer"""


def install():
    """Once, and again when another version is wanted."""
    stamp = VENV / "version"
    if stamp.exists() and stamp.read_text() == VERSION:
        return
    print(f"      installing Synapse {VERSION} into {VENV}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"matrix-synapse=={VERSION}"], check=True)
    stamp.write_text(VERSION)


def limits():
    nested = {}
    for name in LIMITS.split():
        outer, _, inner = name.partition(".")
        nested.setdefault(outer, {})[inner] = NO_LIMIT
    for outer, inner in nested.items():
        values = inner.get("") or "{" + ", ".join(f"{key}: {value}" for key, value in inner.items()) + "}"
        yield f"{outer}: {values}"


class Synapse(Server):
    """`link_port`: where the others reach it, which is part of its name."""

    def __init__(self, work, link_port, https, issued):
        self.name = f"localhost:{link_port}"
        self.work = pathlib.Path(work) / "synapse"
        self.work.mkdir()
        self.http, self.https, self.issued = free_port(), https, issued
        self.url = f"http://127.0.0.1:{self.http}"
        self.process = None

    def configure(self):
        """Writes its configuration; `issued` is a certificate (.pem) with its key (.key) and the authority beside it."""
        authority = self.issued.parent.parent / "ca.pem"
        subprocess.run([VENV / "bin/generate_signing_key", "-o", self.work / "signing.key"], check=True)
        log = self.work / "log.yaml"
        log.write_text(
            "version: 1\nformatters: {line: {format: '%(asctime)s %(name)s %(levelname)s %(message)s'}}\n"
            f"handlers: {{file: {{class: logging.FileHandler, formatter: line, filename: {self.work}/log}}}}\n"
            "root: {level: INFO, handlers: [file]}\ndisable_existing_loggers: false\n"
        )
        listener = "bind_addresses: ['127.0.0.1'], type: http, resources: [{names: [client, federation]}]"
        (self.work / "homeserver.yaml").write_text("\n".join([
            f'server_name: "{self.name}"',
            f"pid_file: {self.work}/pid",
            "report_stats: false",
            "listeners:",
            f"  - {{port: {self.http}, tls: false, {listener}}}",
            f"  - {{port: {self.https}, tls: true, {listener}}}",
            f"tls_certificate_path: {self.issued}.pem",
            f"tls_private_key_path: {self.issued}.key",
            f"federation_custom_ca_list: ['{authority}']",
            f"database: {{name: sqlite3, args: {{database: {self.work}/homeserver.db}}}}",
            f"log_config: {log}",
            f"media_store_path: {self.work}/media",
            f"signing_key_path: {self.work}/signing.key",
            "trusted_key_servers: []",
            "ip_range_blacklist: []",
            "federation_ip_range_blacklist: []",
            "enable_registration: true",
            "enable_registration_without_verification: true",
            "bcrypt_rounds: 4",
            "presence: {enabled: true}",
            "allow_public_rooms_over_federation: true",
            "room_list_publication_rules: [{action: allow}]",
            "macaroon_secret_key: a",
            "form_secret: b",
            "rc_federation: {window_size: 1000, sleep_limit: 1000000000, sleep_delay: 1, reject_limit: 1000000000}",
            # Tries a server again soon, as a node does with its peers: the outage tests wait for that.
            "federation: {destination_min_retry_interval: 1s, destination_retry_multiplier: 1, destination_max_retry_interval: 2s}",
            *limits(),
        ]) + "\n")

    async def start(self):
        log = open(self.work / "stdout", "ab")
        self.process = subprocess.Popen(
            [VENV / "bin/python", "-m", "synapse.app.homeserver", "-c", self.work / "homeserver.yaml"],
            stdout=log, stderr=log, cwd=self.work,
        )
        await answers(self.url, lambda: self.process.poll() is None)

    def kill(self, how=signal.SIGKILL):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None
